"""What is free, and who may have it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sliceprop.errors import MemoryTakenError, TooLargeError
from sliceprop.memory import check_memory, free_bytes, share

GIB = 1 << 30


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with 10 GiB; tells it how many of them this process takes."""
    taken = 0

    def set_taken(gib: int) -> None:
        nonlocal taken
        taken = gib

    monkeypatch.setattr("sliceprop.memory.free_bytes", lambda: (10 - taken) * GIB)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=taken * GIB))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    return set_taken


def ask(gib: int) -> None:
    """Ask for a volume that needs so much."""
    check_memory((gib, 1024, 1024), bytes_per_voxel=1024)


def ask_beside(gib: int) -> None:
    """The same from other work."""

    def work() -> None:
        with share():
            ask(gib)

    with ThreadPoolExecutor(1) as other:
        other.submit(work).result()


def test_huge_volumes_are_refused_with_an_estimate() -> None:
    with pytest.raises(TooLargeError, match="GiB"):
        check_memory((100_000, 100_000, 1_000))


def test_what_one_was_promised_no_other_gets_until_it_has_ended(take: Callable[[int], None]) -> None:
    with share():
        ask(6)
        ask_beside(4)
        with pytest.raises(MemoryTakenError, match="try again"):
            ask_beside(5)
    ask_beside(5)


def test_what_was_promised_does_not_count_again_when_it_is_taken(take: Callable[[int], None]) -> None:
    with share():
        ask(6)
        take(6)
        ask_beside(4)
        with pytest.raises(TooLargeError):
            ask_beside(5)


def test_who_asks_twice_needs_both_unless_it_is_the_same(take: Callable[[int], None]) -> None:
    with share():
        ask(2)
        ask(2)
        ask_beside(8)
        ask(5)
        ask_beside(3)
        with pytest.raises(MemoryTakenError):
            ask_beside(4)


def test_alone_one_may_have_all(take: Callable[[int], None]) -> None:
    with share():
        ask(6)
        ask(10)
        with pytest.raises(TooLargeError, match=r"10\.0 GiB are free"):
            ask(11)


@pytest.mark.parametrize(
    ("limit", "free"),
    [("max", None), (str(50 << 20), 21 << 20), (str(20 << 20), 0), (str(1 << 60), None)],
    ids=["none", "some", "less than is used", "more than the machine has"],
)
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, limit: str, free: int | None) -> None:
    """As the kernel writes them; 1 MiB of what is used are pages of files that it would give up."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{30 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon {20 << 20}\ninactive_file {1 << 20}\nactive_file 4096\n")
    if free is None:
        assert free_bytes(tmp_path) > 64 << 20
    else:
        assert free_bytes(tmp_path) == free


def test_a_machine_without_containers_has_what_is_free(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 64 << 20
