import numpy as np
import pytest

import balls

LPS = np.diag([-1.0, -1, 1, 1])
SHAPE = (5, 6, 4)


def study(affine, shape=SHAPE, axis=2):
    return {"affine_lps": (LPS @ affine).tolist(), "shape": list(shape), "slice_axis": axis}


def reordered(axes, back, affine):
    """The affine of the same voxels with axes `axes` of the study, some counted the other way round."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for node_axis, study_axis in enumerate(axes):
        turn[study_axis, node_axis] = -1 if back[node_axis] else 1
        if back[node_axis]:
            turn[study_axis, 3] = SHAPE[study_axis] - 1
    return affine @ turn


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("back", [(False, False, False), (True, False, True)])
@pytest.mark.parametrize("affine", [balls.STRAIGHT, balls.OBLIQUE])
def test_swapped_and_reversed_axes_are_found(slicer, axes, back, affine):
    from SlicePropLib.grids import align

    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    node = np.transpose(array, axes)[tuple(slice(None, None, -1 if one else 1) for one in back)]
    alignment = align(reordered(axes, back, affine), node.shape, study(affine))
    np.testing.assert_array_equal(alignment.to_study(node), array)
    np.testing.assert_array_equal(alignment.to_node(array), node)


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        (balls.STRAIGHT + np.eye(4)[:, [0]] @ np.eye(4)[[3]] * 0.5, SHAPE),
        (balls.STRAIGHT @ np.diag([2.0, 1, 1, 1]), SHAPE),
        (balls.OBLIQUE, SHAPE),
        (balls.STRAIGHT, (5, 6, 3)),
    ],
)
def test_other_grids_are_refused(slicer, affine, shape):
    from SlicePropLib.grids import GridError, align

    with pytest.raises(GridError, match="load the study's own scan"):
        align(affine, shape, study(balls.STRAIGHT))


@pytest.mark.parametrize(("axis", "view"), [(0, "Yellow"), (1, "Green"), (2, "Red")])
def test_the_view_that_looks_along_the_slices(slicer, axis, view):
    from SlicePropLib.grids import view_of

    assert view_of(study(balls.OBLIQUE, axis=axis)) == view_of(study(balls.STRAIGHT, axis=axis)) == view
