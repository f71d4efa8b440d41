"""A study of 8 slices along axis 2; slices 1 and 5 are drawn by hand, 2 to 4 are our answer."""

import numpy as np
import pytest

from sliceprop.server.provenance import (
    Annotation,
    Sent,
    given_bare,
    hand_made,
    is_our_result,
    lay_over,
    likeliest,
    outlined,
)

AXIS = 2


def volume(**values):
    """`volume(s1=1, s2=2)`: slice 1 holds a square of label 1, slice 2 one of label 2."""
    labels = np.zeros((6, 6, 8), np.int32)
    for name, value in values.items():
        labels[1:4, 1:4, int(name[1:])] = value
    return labels


DRAWN = volume(s1=1, s5=1)
RESULT = volume(s1=1, s2=1, s3=1, s4=1, s5=1)
SENT = Sent(RESULT, DRAWN, AXIS, (1, 5))
KNOWN = Annotation(DRAWN, AXIS, (1, 5))


def again(labels, **options):
    return hand_made(labels, slice_axis=AXIS, sent=SENT, known=KNOWN, **options)


def test_a_first_label_is_all_hand_made():
    assert hand_made(RESULT, slice_axis=AXIS).annotated_slices == (1, 2, 3, 4, 5)


def test_our_result_come_back_unchanged_adds_nothing():
    annotation = again(RESULT)
    assert annotation.annotated_slices == (1, 5)
    np.testing.assert_array_equal(annotation.labels, DRAWN)


def test_a_corrected_slice_becomes_hand_made():
    corrected = RESULT.copy()
    corrected[0, 0, 3] = 1
    annotation = again(corrected)
    assert annotation.annotated_slices == (1, 3, 5)
    np.testing.assert_array_equal(annotation.labels[..., 3], corrected[..., 3])
    assert not annotation.labels[..., [2, 4]].any()


def test_what_was_annotated_before_a_client_was_given_the_scan_alone_stays():
    bare = given_bare(KNOWN)
    first = hand_made(volume(s3=2), slice_axis=AXIS, sent=bare, known=KNOWN)
    assert first.annotated_slices == (1, 3, 5)
    np.testing.assert_array_equal(first.labels, volume(s1=1, s3=2, s5=1))
    again = hand_made(volume(s1=2, s4=2), slice_axis=AXIS, sent=bare, known=first)
    assert again.annotated_slices == (1, 4, 5), "its own slices it can erase and draw anew"
    np.testing.assert_array_equal(again.labels, volume(s1=2, s4=2, s5=1))
    assert hand_made(volume(s3=2), slice_axis=AXIS, sent=bare, known=KNOWN, listed=(3,)).annotated_slices == (3,)


def test_an_erased_slice_is_known_background():
    erased = RESULT.copy()
    erased[..., 4] = 0
    annotation = again(erased)
    assert annotation.annotated_slices == (1, 4, 5)
    assert not annotation.labels[..., 4].any()


def test_reviewed_and_listed_slices_count_as_they_are():
    annotation = again(RESULT, listed=(3,), reviewed=(2,))
    assert annotation.annotated_slices == (1, 2, 3, 5)
    np.testing.assert_array_equal(annotation.labels[..., 2], RESULT[..., 2])


def test_a_slice_that_is_empty_and_not_listed_was_taken_back():
    sparse = volume(s1=1, s2=1, s4=1, s5=1)
    assert again(sparse, listed=(1, 2, 4, 5)).annotated_slices == (1, 2, 4, 5)
    assert again(sparse, listed=(1, 2, 3, 4, 5)).annotated_slices == (1, 2, 3, 4, 5)
    assert again(sparse).annotated_slices == (1, 3, 5)


def test_what_was_reviewed_before_stays_so():
    reviewed = again(RESULT, reviewed=(2,))
    corrected = RESULT.copy()
    corrected[0, 0, 4] = 1
    annotation = hand_made(corrected, slice_axis=AXIS, sent=SENT, known=reviewed)
    assert annotation.annotated_slices == (1, 2, 4, 5)


def test_a_new_sparse_label_replaces_the_old_one():
    assert again(volume(s1=1, s7=1)).annotated_slices == (1, 7)
    assert again(DRAWN).annotated_slices == (1, 5)


def test_a_sparse_label_may_look_just_like_what_we_had_filled():
    annotation = again(volume(s1=1, s3=1, s5=1))
    assert annotation.annotated_slices == (1, 3, 5)


def test_going_back_to_an_older_sparse_label_does_not_take_the_gaps_for_drawn():
    other = Annotation(volume(s7=1), AXIS, (7,))
    annotation = hand_made(DRAWN, slice_axis=AXIS, sent=SENT, known=other)
    assert annotation.annotated_slices == (1, 5)


def test_a_list_says_exactly_what_counts_in_a_label_of_ones_own():
    annotation = hand_made(RESULT, slice_axis=AXIS, listed=(1, 6))
    assert annotation.annotated_slices == (1, 6)
    np.testing.assert_array_equal(annotation.labels, volume(s1=1))


def test_a_result_along_another_axis_says_nothing():
    assert not is_our_result(RESULT, 0, SENT)
    assert is_our_result(RESULT, AXIS, SENT)


def test_labels_come_back_from_the_result_that_they_differ_from_least():
    other = Sent(volume(s1=1, s2=1, s3=2, s4=1, s5=1), DRAWN, AXIS, (1, 5))
    bare = given_bare(KNOWN)
    corrected = RESULT.copy()
    corrected[0, 0, 2] = 1
    given = [outlined(bare, "bare"), outlined(other, "other"), outlined(SENT, "sent")]
    assert [outline.name for outline in likeliest(corrected, given)] == ["sent", "other", "bare"]
    assert [outline.name for outline in likeliest(other.labels, given)] == ["other", "sent", "bare"]
    assert likeliest(volume(s3=2), given) == given, "the newest, for a label of the user's own"
    assert likeliest(RESULT, []) == []


def test_a_result_on_another_grid_is_none_that_labels_come_back_from():
    turned = outlined(Sent(np.moveaxis(RESULT, 2, 0), np.moveaxis(DRAWN, 2, 0), AXIS, (1, 5)))
    longer = outlined(Sent(np.pad(RESULT, ((0, 0), (0, 0), (0, 1))), np.pad(DRAWN, ((0, 0), (0, 0), (0, 1))), AXIS, ()))
    newest = outlined(given_bare(KNOWN))
    assert likeliest(RESULT, [newest, turned, outlined(SENT, "sent"), longer])[0].name == "sent"
    assert likeliest(RESULT, [newest, turned]) == [newest, turned]


@pytest.mark.parametrize("told", [True, False])  # clients such as 3D Slicer's stock module say nothing
def test_partial_keeps_only_the_labels_that_were_drawn(told):
    drawn = volume(s1=1)
    result = volume(s1=1, s2=1)
    result[5, 5, 1:3] = 2
    sent = Sent(result, drawn, AXIS, (1,))
    known = Annotation(drawn, AXIS, (1,), partial=True)
    back = result.copy()
    back[4, 4, 2] = 2
    annotation = hand_made(back, slice_axis=AXIS, sent=sent, known=known, partial=told)
    assert annotation.annotated_slices == (1, 2) and annotation.partial
    assert set(np.unique(annotation.labels[..., 1])) == {0, 1}
    assert set(np.unique(annotation.labels[..., 2])) == {0, 2}


@pytest.mark.parametrize(("listed", "reviewed"), [((3,), ()), (None, (3,))])
def test_a_slice_that_is_called_complete_makes_no_other_complete(listed, reviewed):
    result = volume(s1=1, s2=1, s3=1, s4=1)
    result[5, 5, 1:5] = 2
    known = Annotation(volume(s1=1), AXIS, (1,), partial=True)
    sent = Sent(result, known.labels, AXIS, (1,))
    kept = hand_made(result, slice_axis=AXIS, sent=sent, known=known, listed=listed, reviewed=reviewed)
    assert kept.partial and kept.annotated_slices == (1, 3)
    assert np.unique(kept.labels[..., 1]).tolist() == [0, 1] and np.unique(kept.labels[..., 3]).tolist() == [0, 1, 2]
    every = hand_made(result, slice_axis=AXIS, sent=sent, known=known, listed=(1, 3))
    assert not every.partial and every.annotated_slices == (1, 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_counts_slices(axis):
    labels = np.moveaxis(volume(s1=1, s4=2), 2, axis)
    annotation = hand_made(labels, slice_axis=axis)
    assert annotation.annotated_slices == (1, 4)
    np.testing.assert_array_equal(annotation.labels, labels)


def test_what_was_drawn_lies_over_a_result():
    drawn = volume(s1=2, s5=0)
    shown = lay_over(RESULT, Annotation(drawn, AXIS, (1, 5)))
    np.testing.assert_array_equal(shown, volume(s1=2, s2=1, s3=1, s4=1))
    np.testing.assert_array_equal(RESULT, volume(s1=1, s2=1, s3=1, s4=1, s5=1))


def test_a_partly_drawn_slice_keeps_the_other_labels_of_a_result():
    result, drawn = volume(s1=1, s2=1), np.zeros((6, 6, 8), np.int32)
    result[5, :, 1] = 2
    drawn[0, 0, 1] = 1
    shown = lay_over(result, Annotation(drawn, AXIS, (1,), partial=True))
    assert np.argwhere(shown[..., 1] == 1).tolist() == [[0, 0]]
    assert (shown[5, :, 1] == 2).all() and (shown[..., 2] == result[..., 2]).all()
