"""The strip: one column per slice, annotated or not, how good the propagation is, and which slice is next."""

# mypy: allow-subclassing-any, no-warn-unused-ignores
from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from sliceprop.napari_plugin.session import SliceState

ANNOTATED = QColor("#4f9cf9")
SUGGESTED = QColor("#ffb000")
UNKNOWN = QColor("#5a626c")
CURRENT = QColor("#ffffff")
TEXT = QColor("#c8ccd0")

TOP_PX, BOTTOM_PX, SIDE_PX = 12, 14, 4
"""Room above the columns for marks, below for numbers, and beside."""

WORST, BEST = 0.5, 1.0
"""Estimated Dice from an empty to a full column."""


def quality_color(dice: float) -> QColor:
    """Red at 0.5 and below, green at 1."""
    share = min(max((dice - WORST) / (BEST - WORST), 0.0), 1.0)
    return QColor.fromHsvF(0.33 * share, 0.75, 0.8)


class SliceStrip(QWidget):
    """Shows the slices of a study; a click goes there.

    Attributes:
        picked: the slice that was clicked.
    """

    picked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slices: Sequence[SliceState] = ()
        self._current = 0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMinimumSize(120, 84)
        self.setMouseTracking(True)

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(300, 84)

    def show_slices(self, slices: Sequence[SliceState], current: int) -> None:
        """Draw these."""
        self._slices, self._current = slices, current
        self.update()

    def column(self, s: int) -> QRectF:
        """Where slice `s` is drawn."""
        width = (self.width() - 2 * SIDE_PX) / max(len(self._slices), 1)
        return QRectF(SIDE_PX + s * width, TOP_PX, width, self.height() - TOP_PX - BOTTOM_PX)

    def slice_at(self, x: float) -> int | None:
        """The slice under a position, None beside all."""
        if not self._slices:
            return None
        s = int((x - SIDE_PX) / self.column(0).width())
        return s if 0 <= s < len(self._slices) else None

    def text(self, s: int) -> str:
        """What the tool tip says."""
        state = self._slices[s]
        parts = [f"Slice {s}"]
        if state.annotated:
            parts.append("annotated")
        elif state.quality is not None:
            parts.append(f"expected Dice {state.quality:.2f}")
        else:
            parts.append("not annotated")
        if state.suggested:
            parts.append("annotate this one next")
        return ", ".join(parts)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw the columns."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if not self._slices:
            painter.setPen(TEXT)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "Choose an image and labels")
            return
        for s, state in enumerate(self._slices):
            self._draw(painter, s, state)
        self._draw_numbers(painter)

    def _draw(self, painter: QPainter, s: int, state: SliceState) -> None:
        box = self.column(s)
        gap = min(1.0, box.width() / 6)
        inner = box.adjusted(gap, 0, -gap, 0)
        painter.fillRect(inner, QColor("#2b3036"))
        if state.annotated:
            painter.fillRect(inner, ANNOTATED)
        elif state.quality is not None:
            share = min(max((state.quality - WORST) / (BEST - WORST), 0.06), 1.0)
            painter.fillRect(inner.adjusted(0, inner.height() * (1 - share), 0, 0), quality_color(state.quality))
        else:
            painter.fillRect(inner.adjusted(0, inner.height() * 0.94, 0, 0), UNKNOWN)
        if state.suggested:
            middle, half = box.center().x(), max(4.0, min(6.0, box.width()))
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(SUGGESTED)
            painter.drawPolygon(
                QPolygonF([QPointF(middle - half, 1), QPointF(middle + half, 1), QPointF(middle, TOP_PX - 1)])
            )
        if s == self._current:
            painter.setPen(QPen(CURRENT, 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(inner.adjusted(0, 0.75, 0, -0.75))

    def _draw_numbers(self, painter: QPainter) -> None:
        painter.setPen(TEXT)
        font = painter.font()
        font.setPixelSize(10)
        painter.setFont(font)
        last, step = len(self._slices) - 1, 1
        while len(self._slices) / step > self.width() / 34:
            step *= 5 if str(step).startswith("1") and step > 1 else 2
        for s in range(0, last + 1, step):
            box = self.column(s)
            place = QRectF(box.center().x() - 15, self.height() - BOTTOM_PX + 1, 30, BOTTOM_PX - 1)
            painter.drawText(place, Qt.AlignmentFlag.AlignCenter, str(s))

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        """Pick the slice under the pointer."""
        self._pick(event)

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:
        """Follow the pointer while a button is down."""
        if event is None:
            return
        if event.buttons():
            self._pick(event)
        elif (s := self.slice_at(event.position().x())) is not None:
            QToolTip.showText(event.globalPosition().toPoint(), self.text(s), self)

    def _pick(self, event: QMouseEvent | None) -> None:
        if event is not None and (s := self.slice_at(event.position().x())) is not None:
            self.picked.emit(s)
