import pytest

from sliceprop.errors import InputError
from sliceprop.server.guard import check_names, plain_filename, plain_name


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "/etc/passwd", "../x", "a\0b", "a\nb", "x" * 201])
def test_names_that_could_leave_a_folder_are_refused(name):
    with pytest.raises(InputError):
        plain_name(name, "tag")


@pytest.mark.parametrize("name", ["final", "Schädel 3", "1.2.840.113619", "scan.v2", "a..b", ""])
def test_plain_names_pass(name):
    assert plain_name(name, "tag") == name


@pytest.mark.parametrize("name", ["../a.nii.gz", "a/b.nii.gz", "/tmp/../etc/x.nii", "a\\b.nrrd", ".."])
def test_file_names_with_separators_are_refused(name):
    with pytest.raises(InputError):
        plain_filename(name)


@pytest.mark.parametrize(
    ("name", "last"),
    [("/var/Slicer-x/tmp1.nrrd", "tmp1.nrrd"), ("C:\\Temp\\t.nrrd", "t.nrrd"), ("l.bin", "l.bin"), (None, "")],
)
def test_the_absolute_paths_of_stock_clients_are_cut_to_the_name(name, last):
    assert plain_filename(name) == last


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/datastore/image", "image=%2Fetc%2Fpasswd"),
        ("/datastore/label", "label=a&tag=..%2F..%2Fx"),
        ("/infer/labelprop", "image=..&x=1"),
        ("/session/../x", ""),
        ("/infer/labelprop", "session_id=..%2Fa"),
    ],
)
def test_requests_with_paths_as_names_are_refused(path, query):
    with pytest.raises(InputError):
        check_names(path, query)


@pytest.mark.parametrize(
    ("path", "query"), [("/info/", ""), ("/proxy/dicom/qido/x", "id=a/b"), ("/datastore/label", "tag=sparse")]
)
def test_other_requests_pass(path, query):
    check_names(path, query)
