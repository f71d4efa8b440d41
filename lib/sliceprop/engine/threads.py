"""How many threads torch uses: one for many small steps, where waking a second costs more than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(when: bool = True) -> Iterator[int]:
    """Torch on one thread while the context lasts, if `when`: on a busy machine much faster for small work.

    Yields:
        the number of threads there were, for those who share out larger pieces of work among them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if when else threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
