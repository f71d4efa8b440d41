"""Peak memory, against allocations of known size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from memory import PeakMemory, peak_mib

MIB = 2**20
CHILD = "import numpy; numpy.ones(64 * 2**20, dtype=numpy.uint8); print(flush=True); input()"


def test_what_was_let_go_counts_only_while_it_was_held() -> None:
    with PeakMemory() as before:
        pass
    with PeakMemory() as during:
        np.ones(200 * MIB, dtype=np.uint8)
    with PeakMemory() as after:
        pass
    assert 190 < during.mib - before.mib < 260
    assert after.mib < during.mib - 150
    assert during.children_mib == 0


def holding() -> subprocess.Popen[bytes]:
    """A child that holds 64 MiB until its input ends."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_children_count() -> None:
    with PeakMemory() as memory:
        child = holding()
    child.communicate(b"\n")
    assert 64 < memory.children_mib < 400
    assert peak_mib() > 10


def test_children_that_were_there_before_do_not_count() -> None:
    child = holding()
    with PeakMemory() as memory:
        pass
    child.communicate(b"\n")
    assert memory.children_mib == 0
