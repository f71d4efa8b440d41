"""Repeats learning step by step: how far it got when its time was up is noted, and then counts instead of the clock.

Everything else about it is decided by its seed, so that the same steps on the same device give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar


class Stage:
    """One stage of learning.

    Args:
        limit: steps to repeat; None to go by the clock.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.steps = limit, 0

    def over(self, out_of_time: bool) -> bool:
        """Whether the stage ends here.

        Args:
            out_of_time: what the clock, or the user, says.
        """
        return out_of_time if self.limit is None else self.steps >= self.limit


class Steps:
    """The stages of all learning inside a context, in order.

    Args:
        repeated: steps of the stages of an earlier run; None for a new one.
    """

    def __init__(self, repeated: Sequence[int] | None = None) -> None:
        self._stages, self._repeated = list[Stage](), repeated

    def stage(self) -> Stage:
        """The next one; stages that the earlier run did not have are left out."""
        limit = None
        if self._repeated is not None:
            limit = self._repeated[len(self._stages)] if len(self._stages) < len(self._repeated) else 0
        self._stages.append(Stage(limit))
        return self._stages[-1]

    @property
    def taken(self) -> list[int]:
        """Steps of each stage so far."""
        return [stage.steps for stage in self._stages]


_current: ContextVar[Steps | None] = ContextVar("steps", default=None)


@contextmanager
def counted_steps(repeated: Sequence[int] | None = None) -> Iterator[Steps]:
    """Count the steps of all learning in this thread while the context lasts.

    Args:
        repeated: steps of an earlier run, to repeat them.
    """
    steps = Steps(repeated)
    token = _current.set(steps)
    try:
        yield steps
    finally:
        _current.reset(token)


def next_stage() -> Stage:
    """The stage that begins now; counted and perhaps limited inside `counted_steps`."""
    steps = _current.get()
    return Stage() if steps is None else steps.stage()
