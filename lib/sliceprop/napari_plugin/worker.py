"""Work beside the viewer: one thread per lane, calling back in the viewer's thread."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.qt.threading import WorkerBase, WorkerBaseSignals
from qtpy.QtCore import QTimer, Signal

from sliceprop.napari_plugin.backend import Progress

Work = Callable[[Callable[[Progress], None], Callable[[], bool]], Any]


TURN_MS = 5
"""With 0 Qt would do it before it looks at the mouse and the keys, and draws."""


class _Signals(WorkerBaseSignals):
    progressed = Signal(object)


class _Worker(WorkerBase):  # type: ignore[type-arg]
    """Runs `work(progress, cancelled)`; napari asks it to quit when the application ends."""

    def __init__(self, work: Work) -> None:
        super().__init__(SignalsClass=_Signals)
        self.cancelled = False
        self._work = work

    def work(self) -> Any:
        return self._work(self.signals.progressed.emit, lambda: self.cancelled or self.abort_requested)


class QtRunner:
    """A `session.Runner` on Qt's thread pool; after `close` nothing is called back."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._closed = False

    def start(
        self,
        lane: str,
        work: Work,
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        progress: Callable[[Progress], None],
    ) -> None:
        """Begin; the lane must be free."""
        assert not self.busy(lane)
        worker = self._workers[lane] = _Worker(work)

        def leave() -> None:
            if self._workers.get(lane) is worker:
                del self._workers[lane]

        def end(act: Callable[[Any], None], value: Any) -> None:
            leave()
            if not self._closed:
                act(value)

        worker.returned.connect(lambda value: end(done, value))
        worker.errored.connect(lambda error: end(failed, error))
        worker.finished.connect(leave)
        worker.signals.progressed.connect(lambda event: None if self._closed else progress(event))
        worker.start()

    def later(self, act: Callable[[], None]) -> None:
        """Do something once the viewer has had a turn, if it is still there."""
        QTimer.singleShot(TURN_MS, lambda: None if self._closed else act())

    def busy(self, lane: str) -> bool:
        """Whether something runs in the lane."""
        return lane in self._workers

    def cancel(self, lane: str) -> None:
        """Ask what runs to end early with the best so far."""
        if lane in self._workers:
            self._workers[lane].cancelled = True

    def close(self) -> None:
        """End all that runs and forget its results; no lane is busy any more."""
        self._closed = True
        for worker in self._workers.values():
            worker.cancelled = True
        self._workers.clear()
