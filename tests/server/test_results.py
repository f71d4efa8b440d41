import numpy as np
import pytest

from sliceprop import io
from sliceprop.errors import InputError
from sliceprop.server.results import named, named_suggestion, write_result
from sliceprop.study import Suggestion

SCAN = io.Image(np.zeros((4, 5, 6), np.int16), np.diag([2.0, -3, 4, 1]))
LABELS = np.arange(120, dtype=np.int32).reshape(4, 5, 6)


@pytest.mark.parametrize("extension", [None, ".nii.gz", ".nii", "nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_results_come_in_the_format_and_type_asked_for(extension, dtype):
    file = write_result(LABELS, SCAN, {"result_extension": extension, "result_dtype": dtype})
    try:
        back = io.read_image(file)
    finally:
        file.unlink()
    np.testing.assert_array_equal(back.array, LABELS)
    assert back.array.dtype == dtype
    np.testing.assert_allclose(back.affine, SCAN.affine)


def test_uncompressed_results_are_raw():
    file = write_result(LABELS, SCAN, {"result_extension": ".nrrd", "result_compress": False})
    content = file.read_bytes()
    file.unlink()
    assert b"encoding: raw" in content and content.endswith(LABELS.astype(np.uint8).tobytes(order="F"))


@pytest.mark.parametrize(
    "options", [{"result_extension": ".exe"}, {"result_extension": "../x.nii"}, {"result_dtype": "x"}]
)
def test_other_formats_and_types_are_refused(options):
    with pytest.raises(InputError):
        write_result(LABELS, SCAN, options)


def test_labels_are_never_cut_to_a_type_that_is_too_small():
    with pytest.raises(InputError, match="uint16"):
        write_result(LABELS + 200, SCAN, {"result_dtype": "uint8"})


def test_a_report_is_told_by_name():
    report = {"quality": {"2": {"dice": 0.5}}, "methods": {"2": "shape"}, "method": "auto"}
    expected = {"quality": {"b": {"dice": 0.5}}, "methods": {"b": "shape"}, "method": "auto"}
    assert named(report, {1: "a", 2: "b"}) == expected


def test_the_labels_of_a_suggestion_are_told_by_name():
    suggestion = {"slice": 4, "labels": [2, 1]}
    assert named({"suggestion": suggestion}, {1: "a", 2: "b"})["suggestion"] == {"slice": 4, "labels": ["b", "a"]}
    told = named_suggestion(Suggestion(4, 2, (0.0, 0.0, 8.0), "because", (2, 9)), {2: "b"})
    assert (told["slice"], told["position_ras"], told["labels"]) == (4, (0.0, 0.0, 8.0), ["b", "label_9"])
