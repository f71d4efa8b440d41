"""Which files belong together, and how a study is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sliceprop.cohort.finding import find_studies, label_names, study_ids
from sliceprop.errors import FileError, InputError
from sliceprop.files import write_table


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize(
    ("images", "ids"),
    [
        (["/d/a.nii.gz", "/d/b.mha"], ["a", "b"]),
        (["/d/x/image.nii.gz", "/d/y/image.nrrd", "/d/other.nii"], ["x_image", "y_image", "other"]),
        (["/d/x/1/t1.nii", "/d/y/1/t1.nii", "/d/x/2/t1.nii"], ["x_1_t1", "y_1_t1", "2_t1"]),
        (["/d/v1.2.nii.gz", "/d/.hidden.nii.gz", "/d/series"], ["v1.2", "hidden", "series"]),
        (["/d/x/../y/a.nii", "/d/x/a.nii"], ["y_a", "x_a"]),
        (["/d/a.nii", "/d/a.nii.gz"], ["d_a", "d_a"]),
    ],
)
def test_a_study_is_called_by_its_scan_and_as_many_folders_as_it_takes(images: list[str], ids: list[str]) -> None:
    assert study_ids([Path(image) for image in images]) == ids


def test_a_studies_folder_has_its_labels_in_the_folder_of_their_tag(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.nii.gz", "b.mha", "c.nrrd", ".writing-x.nii.gz", "notes.txt")))
    touch(tmp_path / "labels/sparse/a.nrrd", tmp_path / "labels/final/a.nii.gz", tmp_path / "labels/final/b.nii.gz")
    touch(tmp_path / "labels/scribbles/c.nii.gz", tmp_path / "reference/a.nii.gz")
    (tmp_path / "labels.json").write_text('{"liver": 3}')
    entries, failures = find_studies(tmp_path)
    assert not failures
    assert [entry.id for entry in entries] == ["a", "b", "c"]
    assert [entry.labels for entry in entries] == [
        tmp_path / "labels/sparse/a.nrrd",
        tmp_path / "labels/final/b.nii.gz",
        None,
    ]
    assert entries[2].scribbles == tmp_path / "labels/scribbles/c.nii.gz"
    assert label_names(tmp_path) == {3: "liver"}


def test_names_of_the_server_count_before_the_list(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"liver": 3}')
    (tmp_path / ".labelprop").mkdir()
    write_table(tmp_path / ".labelprop" / "names.json", ["kidney", "liver"])
    assert label_names(tmp_path) == {1: "kidney", 2: "liver"}
    (tmp_path / ".labelprop" / "names.json").write_text("{")
    assert label_names(tmp_path) == {1: "kidney", 2: "liver"}
    for name in ("names.json", "names.copy.json"):
        (tmp_path / ".labelprop" / name).write_text("{")
    assert label_names(tmp_path) == {3: "liver"}


def test_what_the_server_noted_of_a_label_file_counts(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "labels/sparse/a.nii.gz", tmp_path / "b.nii.gz")
    touch(tmp_path / "labels/sparse/b.nii.gz")
    info = {"a": {"slice_axis": 1, "annotated_slices": [3, 9]}, "b": {"slice_axis": 0, "partial": True}}
    objects = {name: {"image": {}, "labels": {"sparse": {"info": each}}} for name, each in info.items()}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    (a, b), _ = find_studies(tmp_path)
    assert (a.slice_axis, a.annotated_slices, a.partial) == ("1", (3, 9), False)
    assert (b.slice_axis, b.annotated_slices, b.partial) == ("0", None, True)


def test_a_folder_of_folders(tmp_path: Path) -> None:
    touch(tmp_path / "x/image.nii.gz", tmp_path / "x/labels.nii.gz")
    touch(tmp_path / "y/image.mha", tmp_path / "y/label.nrrd", tmp_path / "y/scribbles.nrrd", tmp_path / "z/image.txt")
    (x, y), failures = find_studies(tmp_path)
    assert not failures
    assert (x.id, x.labels) == ("x_image", tmp_path / "x/labels.nii.gz")
    assert (y.id, y.labels, y.scribbles) == ("y_image", tmp_path / "y/label.nrrd", tmp_path / "y/scribbles.nrrd")


def test_the_folder_of_one_study(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.nii.gz" for name in ("image", "labels", "scribbles")))
    (entry,), failures = find_studies(tmp_path)
    assert not failures
    assert [file.name for file in entry.files] == ["image.nii.gz", "labels.nii.gz", "scribbles.nii.gz"]
    touch(tmp_path / "labels/sparse/image.nii.gz", tmp_path / "other.nii.gz")
    (entry, other), _ = find_studies(tmp_path)
    assert entry.labels == tmp_path / "labels/sparse/image.nii.gz"
    assert other.files == [tmp_path / "other.nii.gz"]


def test_a_folder_with_a_series_is_a_scan_where_it_has_labels_or_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path / "in/series/1.dcm", tmp_path / "in/labels/sparse/series.nii.gz", tmp_path / "in/reference/x.dcm")
    touch(tmp_path / "in/a.nii.gz", tmp_path / "in/labels/sparse/a.nii.gz", tmp_path / "in/a/1.dcm")
    touch(tmp_path / "in/case/image/1.dcm", tmp_path / "in/case/labels.nii.gz")
    entries, failures = find_studies(tmp_path / "in")
    assert not failures
    assert {entry.id: (entry.image.name, entry.labels and entry.labels.name) for entry in entries} == {
        "a": ("a.nii.gz", "a.nii.gz"),
        "series": ("series", "series.nii.gz"),
        "image": ("image", "labels.nii.gz"),
    }
    (entry,), failures = find_studies(tmp_path / "in/case")
    assert not failures
    assert (entry.image.name, entry.labels) == ("image", tmp_path / "in/case/labels.nii.gz")


def test_what_is_no_study_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "labels/sparse/a.nii.gz", tmp_path / "labels/final/ghost.nrrd")
    touch(tmp_path / "large.zarr/.zattrs", tmp_path / "labels/sparse/large.zarr/.zattrs")
    touch(tmp_path / "case/image.zarr/.zattrs", tmp_path / "case/labels.zarr/.zattrs")
    touch(tmp_path / "bare/labels.nii.gz", tmp_path / "site/case/image.nii.gz", tmp_path / "other/labels/sparse/b.nii")
    touch(tmp_path / "scanner/case/image/1.dcm")
    entries, failures = find_studies(tmp_path)
    assert [entry.id for entry in entries] == ["a"]
    reasons = {str(Path(failure.name).relative_to(tmp_path)): failure.reason for failure in failures}
    expected = {
        "labels/final/ghost.nrrd": "there is no ghost.*",
        "large.zarr": "propagate-large",
        "case/image.zarr": "propagate-large",
        "bare/labels.nii.gz": "there is no image.*",
        "site": "give it as the folder",
        "scanner": "give it as the folder",
        "other": "give it as the folder",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_of_several_label_files_none_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz", tmp_path / "labels/sparse/a.nii.gz", tmp_path / "labels/sparse/a.mha")
    touch(tmp_path / "x/image.nii.gz", tmp_path / "x/labels.nii.gz", tmp_path / "x/label.nii.gz")
    entries, failures = find_studies(tmp_path)
    assert not entries
    told = {failure.name: failure.reason for failure in failures}
    assert "has a.nii.gz and a.mha in" in told[f"{tmp_path}/a.nii.gz"]
    assert "has labels.nii.gz and label.nii.gz in" in told[f"{tmp_path}/x/image.nii.gz"]


def test_without_an_image_beside_it_any_name_is_that_of_a_scan(tmp_path: Path) -> None:
    touch(tmp_path / "labels.nii.gz", tmp_path / "a.nii.gz")
    assert [entry.id for entry in find_studies(tmp_path)[0]] == ["a", "labels"]


def test_csv_paths_are_absolute_or_relative_to_it(tmp_path: Path) -> None:
    table = tmp_path / "lists" / "table.csv"
    table.parent.mkdir()
    rows = [
        "image,labels,slice_axis,model",
        f'{tmp_path}/a.nii.gz,"l,1.nii.gz",2,',
        "../b.nii.gz,../b_labels.nii.gz,,m.safetensors",
    ]
    table.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    (a, b), failures = find_studies(table)
    assert not failures
    assert (a.image, a.labels, a.slice_axis, a.model) == (tmp_path / "a.nii.gz", table.parent / "l,1.nii.gz", "2", None)
    assert b.image.resolve() == tmp_path / "b.nii.gz"
    assert (b.slice_axis, b.model) == ("auto", table.parent / "m.safetensors")


def test_lines_that_are_no_study_and_copies_are_told(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [
        "a.nii,l.nii",
        ",l.nii",
        "./a.nii,other.nii",
        "a.nrrd,l.nii",
        "b.nii,l.nii,x",
        "",
        "c.nii,",
        "d.zarr,l.zarr",
        "e\0.nii,l.nii",
    ]
    table.write_text("\n".join(["image,labels", *rows]))
    entries, failures = find_studies(table)
    assert [entry.id for entry in entries] == [f"{'_'.join(tmp_path.parts[1:])}_a", "c"]
    assert entries[1].labels is None
    told = {failure.name: failure.reason for failure in failures}
    assert told["table.csv, line 3"] == "no image"
    assert told["table.csv, line 6"] == "more values than columns"
    assert told["table.csv, line 10"] == "a NUL character"
    assert "more than once" in told[f"{tmp_path}/a.nii"]
    assert "rename" in told[f"{tmp_path}/a.nrrd"]
    assert "propagate-large" in told[f"{tmp_path}/d.zarr"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "found none"), ("image\na.nii\n", "image,labels"), ("image,labels,age\na,b,3\n", "image,labels,age")],
)
def test_columns_must_be_known(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        find_studies(tmp_path / "t.csv")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such"):
        find_studies(tmp_path / "absent")
    with pytest.raises(FileError, match="holds no studies"):
        find_studies(tmp_path)
    (tmp_path / "t.csv").write_bytes(b"image,labels\n\xff\xfe,\n")
    with pytest.raises(FileError, match="cannot be read as CSV"):
        find_studies(tmp_path / "t.csv")
