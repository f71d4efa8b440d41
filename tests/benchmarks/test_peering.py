"""Peers in a Python of their own, shown with a small one that fills with the first annotated slice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from methods import PEERS, PEERS_FOLDER, Method
from peering import CannotRun, run_peer
from phantoms import moving_disc, only

PEER = """
import numpy as np

PACKAGES = ("numpy",)
SETTINGS = {"times": 1, "fault": ""}


def fill(scan, labels, annotated, spacing, times, fault):
    if fault == "import":
        import no_such_package
    if fault == "device":
        raise SystemExit("cannot run: no device")
    if fault == "crash":
        raise MemoryError("all is full")
    assert scan.dtype == np.float32 and spacing == [3.0, 1.0, 1.0]
    filled = np.broadcast_to(times * labels[annotated[0]], labels.shape)
    return filled[:2] if fault == "shape" else filled, {"train_s": 1.5, "propagate_s": 0.5, "device": "cpu"}
"""


@pytest.fixture
def peer(tmp_path: Path) -> str:
    (tmp_path / "peer.py").write_text(PEER)
    return str(tmp_path)


def fill(peer: str, **settings: str) -> tuple[np.ndarray, dict]:
    image, labels = moving_disc()
    method = Method("toy", peer, peer=settings)
    return run_peer(method, sys.executable, image, only(labels, [2, 8]), [2, 8], (3.0, 1.0, 1.0))


def test_a_peer_gets_the_annotated_slices_and_gives_labels(peer: str) -> None:
    labels, told = fill(peer, times="3")
    expected = np.broadcast_to(3 * moving_disc()[1][2], labels.shape)
    np.testing.assert_array_equal(labels, expected)
    assert (told["train_s"], told["propagate_s"], told["device"]) == (1.5, 0.5, "cpu")
    assert told["settings"] == {"times": 3, "fault": ""}
    assert told["versions"].endswith(f"numpy {np.__version__}")


@pytest.mark.parametrize(("fault", "reason"), [("import", "no_such_package"), ("device", "no device")])
def test_a_peer_that_cannot_run_says_why(peer: str, fault: str, reason: str) -> None:
    with pytest.raises(CannotRun, match=reason):
        fill(peer, fault=fault)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"fault": "crash"}, "all is full"), ({"fault": "shape"}, "shape"), ({"size": "3"}, "no setting size")],
)
def test_a_peer_that_fails_says_how(peer: str, settings: dict[str, str], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        fill(peer, **settings)


@pytest.mark.parametrize("python", [None, "/no/such/python"])
def test_a_peer_without_a_python_cannot_run(peer: str, python: str | None) -> None:
    with pytest.raises(CannotRun):
        run_peer(Method("toy", peer), python, *moving_disc(), [0], (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_what_it_needs(name: str) -> None:
    assert all((PEERS_FOLDER / name / file).is_file() for file in ("requirements.txt", "peer.txt"))
    assert name in (PEERS_FOLDER / name / "peer.txt").read_text()
