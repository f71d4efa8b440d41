import json
import os
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")
from monailabel.interfaces.exception import ImageNotFoundException

from sliceprop.errors import FileError
from sliceprop.server.datastore import LocalStudies


def save(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((3, 3, 3), value, np.uint8), np.eye(4)), path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "studies" / "a.nii.gz")
    (tmp_path / "studies" / "b.mha").write_bytes(b"")
    (tmp_path / "studies" / "picture.png").write_bytes(b"")
    return tmp_path / "studies"


@pytest.fixture
def stores(folder, monkeypatch):
    """Two processes on one folder."""
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    return LocalStudies(str(folder)), LocalStudies(str(folder))


def test_scans_are_images_and_pictures_are_not(stores):
    assert sorted(stores[0].list_images()) == ["a", "b"]


def test_a_label_replaces_the_one_of_its_tag(stores, tmp_path):
    for value in (1, 2):
        stores[0].save_label("a", save(tmp_path / "l.nii.gz", value), "sparse", {"partial": False})
    assert nib.load(stores[0].get_label_uri("a", "sparse")).get_fdata().max() == 2
    assert stores[0].get_label_info("a", "sparse")["partial"] is False


def test_a_label_of_an_unknown_image_is_refused(stores, tmp_path):
    with pytest.raises(ImageNotFoundException):
        stores[0].save_label("x", save(tmp_path / "l.nii.gz"), "sparse", {})


def test_processes_keep_each_others_entries(stores, tmp_path):
    server, scorer = stores
    server.save_label("a", save(tmp_path / "l.nii.gz"), "sparse", {"partial": True})
    scorer.update_image_info("a", {"quality": 0.9})
    server.save_label("a", save(tmp_path / "l.nii.gz"), "final", {})
    assert server.get_image_info("a")["quality"] == 0.9
    assert server.get_label_info("a", "sparse")["partial"] is True
    assert scorer.get_image_info("a")["quality"] == 0.9


def test_a_write_that_fails_leaves_the_old_files(stores, tmp_path, folder):
    stores[0].save_label("a", save(tmp_path / "l.nii.gz", 1), "sparse", {})
    with pytest.raises(FileError):
        stores[0].save_label("a", str(tmp_path / "missing.nii.gz"), "sparse", {})
    assert nib.load(stores[0].get_label_uri("a", "sparse")).get_fdata().max() == 1
    assert json.loads((folder / "datastore_v2.json").read_text())["objects"]["a"]["labels"].keys() == {"sparse"}


def test_threads_that_look_for_files_at_once_do_not_disturb_each_other(tmp_path):
    """As requests and the thread that watches the folder do."""
    store = LocalStudies(str(tmp_path))
    names = [f"scan{n}.nii.gz" for n in range(200)]
    with ThreadPoolExecutor(8) as threads:
        for n in range(6):
            for name in names:
                (tmp_path / name).unlink(missing_ok=True) if n % 2 else (tmp_path / name).touch()
            list(threads.map(lambda _: store.refresh(), range(8)))
    assert store.list_images() == []


def test_a_damaged_list_does_not_keep_the_server_from_starting(stores, tmp_path, folder):
    stores[0].save_label("a", save(tmp_path / "l.nii.gz"), "sparse", {})
    file = folder / "datastore_v2.json"
    file.write_bytes(file.read_bytes()[:-40])
    again = LocalStudies(str(folder))
    assert sorted(again.list_images()) == ["a", "b"] and again.label_file("a", "sparse")


def test_an_image_that_cannot_be_copied_leaves_the_old_one(stores, tmp_path, folder):
    before = (folder / "a.nii.gz").read_bytes()
    with pytest.raises(FileError):
        stores[0].add_image("a", str(tmp_path / "missing.nii.gz"), {})
    assert (folder / "a.nii.gz").read_bytes() == before
    assert stores[0].add_image("", save(tmp_path / "new.nii.gz"), {"from": "a test"}) == "new"
    assert stores[1].get_image_info("new")["from"] == "a test"


def test_a_file_that_is_being_written_is_no_image_and_old_ones_go(folder):
    young, old = folder / ".writing-young.nii.gz", folder / "labels" / "sparse" / ".writing-old.nii.gz"
    for file in (young, old):
        save(file)
    os.utime(old, (0, 0))
    assert sorted(LocalStudies(str(folder)).list_images()) == ["a", "b"]
    assert young.exists() and not old.exists()
