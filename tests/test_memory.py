"""What is free, and who may have it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sliceprop.errors import MemoryTakenError, TooLargeError
from sliceprop.memory import check_memory, free_and_total_bytes, share

GIB = 1 << 30


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with 10 GiB; tells it how many of them this process takes."""
    taken = 0

    def set_taken(gib: int) -> None:
        nonlocal taken
        taken = gib

    monkeypatch.setattr("sliceprop.memory.free_and_total_bytes", lambda: ((10 - taken) * GIB, 20 * GIB))
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
        with pytest.raises(MemoryTakenError):
            ask_beside(5)


def test_who_reads_one_after_the_other_needs_the_largest_and_what_it_works_on(take: Callable[[int], None]) -> None:
    with share():
        for gib in (2, 3, 2):
            ask(gib)
        ask_beside(7)
        check_memory((2, 1024, 1024), bytes_per_voxel=2048)  # 4 GiB
        ask_beside(3)
        with pytest.raises(MemoryTakenError):
            ask_beside(4)


def test_alone_one_may_have_all(take: Callable[[int], None]) -> None:
    with share():
        ask(6)
        ask(10)
        with pytest.raises(MemoryTakenError, match=r"10\.0 GiB are free"):
            ask(11)


def test_what_never_fits_is_too_large_however_much_is_taken(take: Callable[[int], None]) -> None:
    for taken in (0, 10):
        take(taken)
        with pytest.raises(TooLargeError) as told:
            ask(21)
        assert not isinstance(told.value, MemoryTakenError)


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
    machine = psutil.virtual_memory().total
    found, total = free_and_total_bytes(tmp_path)
    assert total == (machine if limit == "max" else min(machine, int(limit)))
    assert found == free or (free is None and found > 64 << 20)


def test_a_machine_without_containers_has_what_is_free(tmp_path: Path) -> None:
    free, total = free_and_total_bytes(tmp_path)
    assert 64 << 20 < free < total == psutil.virtual_memory().total
