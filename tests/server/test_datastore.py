import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")
from monailabel.interfaces.exception import ImageNotFoundException
from watchdog.events import FileCreatedEvent, FileMovedEvent

from columns import AFFINE, column
from serving import eventually
from sliceprop.errors import FileError, InputError
from sliceprop.server import datastore
from sliceprop.server.datastore import LocalStudies
from sliceprop.server.errors import ConflictError
from sliceprop.server.requests import label_options


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


@pytest.mark.parametrize("change", ["replace", "drop_label", "remove_label"])
def test_the_mask_beside_a_label_goes_with_it(stores, tmp_path, change):
    for tag in ("round", "round_drawn", "other_drawn"):
        stores[0].save_label("a", save(tmp_path / f"{tag}.nii.gz"), tag, {})
    if change == "replace":
        stores[1].save_label("a", save(tmp_path / "new.nii.gz", 2), "round", {})
    else:
        getattr(stores[1], change)("a", "round")
    assert stores[1].label_file("a", "round_drawn") is None and stores[1].label_file("a", "other_drawn")
    stores[0].refresh()
    assert set(stores[0].get_labels_by_image_id("a")) == {"other_drawn"} | ({"round"} if change == "replace" else set())


def test_a_label_of_an_unknown_image_is_refused(stores, tmp_path):
    with pytest.raises(ImageNotFoundException):
        stores[0].save_label("x", save(tmp_path / "l.nii.gz"), "sparse", {})


def test_a_segmentation_of_slicer_is_the_label_of_its_image_and_only_that(stores, folder):
    save(folder / "b.seg.nii.gz")
    (folder / "labels" / "sparse").mkdir()
    for name in ("a", "b", "c"):
        (folder / "labels" / "sparse" / f"{name}.seg.nrrd").touch()
    stores[0].refresh()
    images = stores[0].json()["objects"]
    endings = {image: [label["ext"] for label in entry["labels"].values()] for image, entry in images.items()}
    assert endings == {"a": [".seg.nrrd"], "b": [], "b.seg": [".nrrd"]}
    stores[0].remove_label("a", "sparse")
    assert stores[0].label_file("a", "sparse") is None


def test_no_file_in_another_format_takes_the_place_of_a_label_that_is_removed(workspace, submit):
    store, versions = workspace.store, workspace.record("case").versions
    submit(column([2]))
    by_hand = Path(store.label_file("case", "sparse")).with_name("case.nii")
    nib.save(nib.Nifti1Image(column([5]), AFFINE), by_hand)
    store.remove_label("case", "sparse")
    assert not list(by_hand.parent.iterdir()) and store.label_file("case", "sparse") is None
    assert workspace.open(workspace.case("case"), label_options({})).annotation is None
    assert [one.entry.event for one in versions.newest_first()] == ["removed", "found", "removed", "submitted"]


def test_no_file_in_another_format_takes_the_place_of_an_image_that_is_removed(stores, folder):
    for name in ("a.nii", "a.nrrd", "ab.nii"):
        save(folder / name) if name.endswith("nii") else (folder / name).touch()
    stores[0].remove_image("a")
    assert sorted(stores[0].list_images()) == ["ab", "b"] and not list(folder.glob("a.*"))


def test_who_watches_the_folder_keeps_what_another_process_noted(stores, tmp_path):
    server, batch = stores
    batch.save_label("a", save(tmp_path / "l.nii.gz"), "round", {"params": {"method": "shape"}})
    batch.update_image_info("a", {"batch": {"error": None}})
    server.refresh()
    for store in (*stores, LocalStudies(server._datastore_path)):
        assert store.get_image_info("a")["batch"] == {"error": None}
        assert store.get_label_info("a", "round")["params"] == {"method": "shape"}


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


def test_who_looks_while_files_are_compared_misses_nothing(stores, folder, tmp_path):
    class Watched(dict):
        def clear(self):
            raise AssertionError("for a moment everything is gone")

    store = stores[0]
    store.save_label("a", save(tmp_path / "label.nii.gz"), "mine", {})
    store._datastore.objects["a"].labels = Watched(store._datastore.objects["a"].labels)
    store._datastore.objects = Watched(store._datastore.objects)
    store.notice_files()
    assert sorted(store.list_images()) == ["a", "b"] and store.label_file("a", "mine")
    (folder / "labels" / "mine" / "a.nii.gz").unlink()
    (folder / "b.mha").unlink()
    store.notice_files()
    assert store.list_images() == ["a"] and store.label_file("a", "mine") is None
    assert LocalStudies(str(folder)).list_images() == ["a"]


def test_a_damaged_list_does_not_keep_the_server_from_starting(stores, tmp_path, folder):
    stores[0].save_label("a", save(tmp_path / "l.nii.gz"), "sparse", {})
    file = folder / "datastore_v2.json"
    file.write_bytes(file.read_bytes()[:-40])
    again = LocalStudies(str(folder))
    assert sorted(again.list_images()) == ["a", "b"] and again.label_file("a", "sparse")


def test_an_image_that_cannot_be_copied_leaves_nothing(stores, tmp_path, folder):
    with pytest.raises(FileError):
        stores[0].add_image("c", str(tmp_path / "missing.nii.gz"), {})
    assert sorted(stores[1].list_images()) == ["a", "b"] and not (folder / "c.nii.gz").exists()
    assert stores[0].add_image("", save(tmp_path / "new.nii.gz"), {"from": "a test"}) == "new"
    assert stores[1].get_image_info("new")["from"] == "a test"


def test_a_file_that_is_being_written_is_no_image_and_old_ones_go(folder):
    young, old = folder / ".writing-young.nii.gz", folder / "labels" / "sparse" / ".writing-old.nii.gz"
    for file in (young, old):
        save(file)
    os.utime(old, (0, 0))
    assert sorted(LocalStudies(str(folder)).list_images()) == ["a", "b"]
    assert young.exists() and not old.exists()


@pytest.mark.parametrize(
    "place", ["", ".labelprop", ".labelprop/checkpoints", ".labelprop/studies/a", ".labelprop/studies/a/set_aside"]
)
def test_what_killed_writers_left_goes_when_nobody_writes_it(folder, place):
    for name, when in (("new", None), ("old", (0, 0))):
        inner, file = folder / place / f".writing-{name}" / "series" / "0.dcm", folder / place / f".writing-{name}.json"
        inner.parent.mkdir(parents=True)
        for path in (inner, file):
            path.touch()
            os.utime(path, when)
        for path in inner.parents[:2]:
            os.utime(path, (0, 0))
    LocalStudies(str(folder))
    left = sorted(path.name for path in (folder / place).glob(".writing-*"))
    assert left == [".writing-new", ".writing-new.json"]


def test_what_is_left_in_a_folder_of_others_stays(folder, tmp_path):
    left = tmp_path / "others" / ".writing-old.nii.gz"
    save(left)
    os.utime(left, (0, 0))
    (folder / "labels").mkdir()
    (folder / "labels" / "linked").symlink_to(left.parent)
    LocalStudies(str(folder))
    assert left.is_file()


def test_a_scan_that_is_sent_again_stays_as_it_is(stores, tmp_path, folder):
    stores[0].save_label("a", save(tmp_path / "l.nii.gz"), "sparse", {})
    before = (folder / "a.nii.gz").read_bytes()
    again = nib.load(folder / "a.nii.gz")
    nib.save(again, tmp_path / "again.nii")  # not the same bytes
    assert stores[1].add_image("a", str(tmp_path / "again.nii"), {"from": "another client"}) == "a"
    assert (folder / "a.nii.gz").read_bytes() == before and not (folder / "a.nii").exists()
    assert stores[0].label_file("a", "sparse") and "from" not in stores[0].get_image_info("a")


@pytest.mark.parametrize("other", ["voxels", "shape", "place"])
def test_another_scan_does_not_take_the_place_of_one_that_is_there(stores, tmp_path, folder, other):
    stores[0].save_label("a", save(tmp_path / "l.nii.gz"), "sparse", {})
    before = {file: file.read_bytes() for file in folder.rglob("*.nii.gz")}
    array, affine = np.ones((3, 3, 4 if other == "shape" else 3), np.uint8), np.eye(4)
    array[0, 0, 0] = 2 if other == "voxels" else 1
    affine[2, 3] = 1 if other == "place" else 0
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    for given in ("a", ""):
        with pytest.raises(ConflictError, match="another scan called 'a'"):
            stores[1].add_image(given, str(tmp_path / "a.nii.gz"), {})
    assert {file: file.read_bytes() for file in folder.rglob("*.nii.gz")} == before


def test_a_picture_in_colour_that_is_there_is_another_scan(stores, tmp_path, folder):
    colour = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), folder / "colour.nii.gz")
    with pytest.raises(ConflictError):
        stores[0].add_image("colour", save(tmp_path / "colour.nii.gz"), {})


def test_of_scans_that_are_sent_at_once_under_one_name_one_is_kept(stores, tmp_path):
    sent = [save(tmp_path / str(n) / "new.nii.gz", n) for n in range(6)]

    def add(n):
        try:
            return stores[n % 2].add_image("", sent[n], {}) and n
        except ConflictError:
            return None

    with ThreadPoolExecutor(6) as threads:
        (kept,) = [n for n in threads.map(add, range(6)) if n is not None]
    assert (nib.load(stores[0].get_image_uri("new")).get_fdata() == kept).all()


@pytest.mark.parametrize("like", ["A", "a\u0301", "\u00c1"])
def test_of_ids_that_look_alike_one_is_taken_also_when_they_come_at_once(stores, tmp_path, like):
    there = "a" if like == "A" else "\u00e1"
    if there != "a":
        stores[0].add_image(there, save(tmp_path / "one.nii.gz"), {})
    for store in stores:  # the second one has not looked since
        with pytest.raises(InputError, match="looks like"):
            store.add_image(like, save(tmp_path / "two.nii.gz", 2), {})
    assert like not in stores[1].list_images()


def test_a_scan_that_the_operator_put_there_meanwhile_is_not_replaced(stores, tmp_path, folder):
    save(folder / "late.nii.gz", 1)
    with pytest.raises(ConflictError):
        stores[0].add_image("late", save(tmp_path / "late.nii.gz", 2), {})
    assert nib.load(folder / "late.nii.gz").get_fdata().max() == 1


def watches():
    """How many watches of the system this process holds."""
    held = 0
    for file in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # another thread has closed it meanwhile
            held += file.read_text().count("inotify wd")
    return held


@pytest.fixture
def watching(tmp_path):
    """A store that watches a folder with a version in it."""
    (tmp_path / ".labelprop" / "studies" / "a" / "versions" / "1").mkdir(parents=True)
    store = LocalStudies(str(tmp_path), watch=True)
    yield store
    store._observer.stop()
    store._observer.join()


def test_files_are_noticed_whoever_puts_them_there(watching, tmp_path):
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "labels" / "new tag" / "a.nii.gz")
    eventually(lambda: "new tag" in watching.get_labels_by_image_id("a"), "the label to be noticed", every_s=0.02)
    (tmp_path / "a.nii.gz").replace(tmp_path / "b.nii.gz")
    eventually(lambda: watching.list_images() == ["b"], "the new name to be noticed", every_s=0.02)
    LocalStudies(str(tmp_path), watch=False).update_image_info("b", {"batch": 1})  # as another process does
    eventually(lambda: watching.get_image_info("b").get("batch") == 1, "the information to be noticed", every_s=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux tells of a process")
def test_versions_are_not_watched(watching, tmp_path):
    before = watches()
    for number in range(2, 40):
        (tmp_path / ".labelprop" / "studies" / "a" / "versions" / str(number)).mkdir()
    save(tmp_path / "a.nii.gz")
    eventually(lambda: watching.list_images() == ["a"], "the scan to be noticed", every_s=0.02)
    assert watches() <= before, "which were the folder, that of the labels, and one per tag"


def test_the_list_is_renewed_for_scans_and_labels_alone_and_a_full_disk_does_not_end_that(caplog):
    asked = []

    def changed():
        asked.append(1)
        raise FileError("the disk is full")

    arrivals = datastore._Arrivals(changed)
    for name in ("a.png", ".writing-a.nii.gz", "last_used.json"):
        arrivals.dispatch(FileCreatedEvent(f"/studies/{name}"))
    assert not asked
    arrivals.dispatch(FileMovedEvent("/studies/.writing-a.nii.gz", "/studies/a.nii.gz"))
    assert asked and "the disk is full" in caplog.text


def test_what_could_not_be_read_again_spoils_no_list(stores):
    deep = []
    for _ in range(400):
        deep = [deep]
    stores[0].update_image_info("a", {"told": "before"})
    with pytest.raises(InputError, match="read again"):
        stores[0].update_image_info("a", {"deep": deep})
    stores[0].update_image_info("a", {"told": "afterwards"})
    info = stores[1].get_image_info("a")
    assert info["told"] == "afterwards" and "deep" not in info


def test_the_list_of_pairs_names_no_file_outside(stores, tmp_path):
    store = stores[0]
    store.save_label("a", save(tmp_path / "l.nii.gz"), "final", {})
    label = Path(store.get_label_uri("a", "final"))
    assert store.datalist() == [{"image": store.get_image_uri("a"), "label": str(label)}]
    label.rename(tmp_path / "secret.nii.gz")
    label.symlink_to(tmp_path / "secret.nii.gz")
    for refused in (store.datalist, lambda: store.get_dataset_archive(None), lambda: store.get_label_uri("a", "final")):
        with pytest.raises(InputError, match=r"the label .*'a' is a link") as told:
            refused()
        assert "secret" not in str(told.value)
