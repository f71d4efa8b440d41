"""Bars of progress on standard error, for commands that take long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sliceprop.engine.pretraining import Event
    from sliceprop.study import Progress


@contextmanager
def learning_bar(measure: str) -> Iterator[Callable[[Progress], None]]:
    """A bar of learning on standard error; it reads the time left from the events, since a budget may end it early."""
    from tqdm import tqdm

    every_s = 0.1 if sys.stderr.isatty() else 1.0
    shape = "{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}{postfix}"
    with tqdm(
        desc="learning", file=sys.stderr, bar_format=shape, mininterval=every_s, dynamic_ncols=True, delay=0.01
    ) as bar:

        def update(event: Progress) -> None:
            bar.total = event.total_epochs
            text = f"{event.seconds_left:.0f} s left, {measure} {event.best_metric:.3f}"
            bar.set_postfix_str(text, refresh=False)
            bar.update(event.epoch - bar.n)

        yield update
        if bar.total:  # its end is shown, however soon that comes
            bar.mininterval = 0
            bar.update(0)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A bar over all studies or slices; it is given how many are done, how many there are, and how many failed."""
    from tqdm import tqdm

    every_s = 0.1 if sys.stderr.isatty() else 5.0
    with tqdm(desc=what, file=sys.stderr, mininterval=every_s, dynamic_ncols=True, unit="", delay=0.2) as bar:

        def update(done: int, total: int, failed: int) -> None:
            bar.total = total
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update(done - bar.n)

        yield update


@contextmanager
def epochs_bar() -> Iterator[Callable[[Event], None]]:
    """A bar over the epochs of a pretraining."""
    from tqdm import tqdm

    with tqdm(desc="pretraining", file=sys.stderr, dynamic_ncols=True, unit="epoch", delay=0.2) as bar:

        def update(event: Event) -> None:
            bar.total = event.epochs
            bar.set_postfix_str(f"similarity {event.similarity:.4f}, best {event.best:.4f}", refresh=False)
            bar.update(event.epoch - bar.n)

        yield update
