from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sliceprop.engine.corrections import REACH_PX, Corrections
from sliceprop.engine.propagation import Carrier
from sliceprop.labels import sparse_labels

SIZE, MIDDLE = 64, 32
ROW = slice(30, 34)
BACKGROUND = 255


def corrections(marks: np.ndarray, image: np.ndarray | None = None) -> Corrections:
    """Of five slices; labels 1 and 2 fill the first and the last one, so that their windows are the whole slice."""
    labels = np.zeros((5, SIZE, SIZE), np.int32)
    labels[0], labels[-1] = 1, 2
    images = np.zeros((5, 1, SIZE, SIZE), np.float32) if image is None else image
    return Corrections(Carrier(sparse_labels(labels, scribbles=marks), torch.from_numpy(images), None))


def scribble(value: int, s: int = 2) -> np.ndarray:
    marks = np.zeros((5, SIZE, SIZE), np.int32)
    marks[s, ROW, 10:40] = value
    return marks


def claims(first: float, second: float = -1.0) -> list[Tensor]:
    return [torch.full((SIZE, SIZE), first), torch.full((SIZE, SIZE), second)]


def winner(scores: list[Tensor]) -> np.ndarray:
    best, label = torch.stack(scores).max(dim=0)
    return torch.where(best > 0, label + 1, 0).numpy()


def test_a_scribble_that_confirms_changes_nothing() -> None:
    given = claims(0.2)
    for value, scores in (1, given), (BACKGROUND, claims(-0.2)):
        assert all(map(torch.equal, corrections(scribble(value)).correct(2, scores), scores))


def test_an_equally_doubtful_surrounding_gives_way_and_what_is_far_stays() -> None:
    given = claims(0.2)
    found = winner(corrections(scribble(BACKGROUND)).correct(2, given))
    assert not found[ROW, 10:40].any() and not found[27:37, 10:40].any()
    assert (found[ROW.stop + REACH_PX :] == 1).all() and (found[:, 40 + REACH_PX :] == 1).all()


def test_what_is_sure_stays() -> None:
    given = claims(0.2)
    given[0][ROW.stop :] = 0.9
    found = winner(corrections(scribble(BACKGROUND)).correct(2, given))
    assert not found[27 : ROW.stop, 10:40].any()
    assert (found[ROW.stop :] == 1).all()


def test_what_looks_different_stays() -> None:
    image = np.zeros((5, 1, SIZE, SIZE), np.float32)
    image[:, :, 36:] = 0.8
    found = winner(corrections(scribble(BACKGROUND), image).correct(2, claims(0.2)))
    assert not found[27 : ROW.stop, 10:40].any()
    assert (found[37:] == 1).all()


@pytest.mark.parametrize("second", [-1.0, 0.1])
def test_one_label_takes_from_another(second: float) -> None:
    found = winner(corrections(scribble(2)).correct(2, claims(0.4, second)))
    assert (found[ROW, 10:40] == 2).all()
    assert (found[:16] == 1).all()


def test_the_next_slices_change_where_they_are_more_doubtful_and_the_others_do_not() -> None:
    marked = corrections(scribble(BACKGROUND))
    given = claims(0.4)
    given[0][MIDDLE:] = 0.2
    for s in (1, 3):
        found = winner(marked.correct(s, given))
        assert (found[28:MIDDLE] == 1).all()
        assert (found[MIDDLE:] == 1).all()
    given[0][ROW.stop :] = 0.1
    found = winner(marked.correct(1, given))
    assert not found[ROW.stop, 10:40].any() and (found[28:MIDDLE] == 1).all()
    for s in (0, 4):
        assert all(map(torch.equal, marked.correct(s, given), given))
