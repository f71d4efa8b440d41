"""Where labels end: between two slices, beyond the outermost one, and never again after that."""

import numpy as np
import pytest
import torch

from sliceprop.engine.extent import supported_slices
from sliceprop.engine.propagation import Carrier
from sliceprop.labels import sparse_labels


def carrier(slices_like: list[int], annotated: dict[int, bool], scribbled: int | None = None) -> Carrier:
    """Textured slices: `slices_like[s]` names the texture of slice `s`; `annotated` says which hold label 1."""
    textures = torch.rand(max(slices_like) + 1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    labels, scribbles = np.zeros((len(slices_like), 40, 40), np.int32), np.zeros((len(slices_like), 40, 40), np.int32)
    for s, holds in annotated.items():
        labels[s, 10:30, 10:30] = int(holds)
    if scribbled is not None:
        scribbles[scribbled, 15:18, 15:18] = 1
    annotation = sparse_labels(labels, annotated_slices=annotated, scribbles=scribbles)
    return Carrier(annotation, textures[slices_like], None)


def supported(source: Carrier, extrapolate: str | int = "auto") -> list[int]:
    found = supported_slices(source, source.annotation.known, extrapolate)  # type: ignore[arg-type]
    return [int(s) for s in np.flatnonzero(found[0])]


def test_between_two_slices_that_hold_it_a_label_always_is() -> None:
    assert supported(carrier([0, 1, 2, 3, 4], {0: True, 4: True})) == [0, 1, 2, 3, 4]


def test_it_ends_half_way_where_the_image_says_nothing() -> None:
    assert supported(carrier([0] * 9, {0: True, 8: False})) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("turn", "last"), [(3, 2), (7, 6)])
def test_the_image_moves_the_end(turn: int, last: int) -> None:
    assert supported(carrier([0] * turn + [1] * (9 - turn), {0: True, 8: False})) == list(range(last + 1))


def test_it_does_not_come_back() -> None:
    assert supported(carrier([0, 0, 1, 1, 0, 0, 1, 1, 1], {0: True, 8: False})) == [0, 1]


def test_beyond_the_outermost_slice_it_follows_the_image() -> None:
    assert supported(carrier([1, 0, 0, 0, 0, 1, 0], {3: True})) == [1, 2, 3, 4]


@pytest.mark.parametrize(("extrapolate", "expected"), [("none", [3]), (0, [3]), (1, [2, 3, 4]), (2, [1, 2, 3, 4, 5])])
def test_or_what_the_user_says(extrapolate: str | int, expected: list[int]) -> None:
    assert supported(carrier([0] * 7, {3: True}), extrapolate) == expected


def test_it_always_reaches_its_scribbles() -> None:
    assert supported(carrier([0] * 7, {3: True}, scribbled=5), "none") == [3, 4, 5]


def test_a_label_that_both_slices_lack_is_not_between_them() -> None:
    assert supported(carrier([0] * 7, {0: True, 2: False, 6: False})) == [0, 1]
