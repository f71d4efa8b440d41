"""A bundle with one convolution of known weights: label 1 where the scan is brighter than 100, 2 above 150."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import balls
from sliceprop import io
from sliceprop.errors import FileError, GeometryError, InputError
from sliceprop.tools.bundle import open_bundle, run_bundle

PREPROCESSING = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
]
INVERSION = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": True,
    "to_tensor": True,
}
SAVING = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"}


def write_bundle(folder, *, invert=True, **changes):
    """Scores of background, 1 and 2 are lines in the intensity that cross at 100 and 150."""
    network = torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        network.weight[:] = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1)
        network.bias[:] = torch.tensor([0.0, -100.0, -250.0])
    (folder / "models").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    steps = [*([INVERSION] if invert else []), {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, SAVING]
    config = {
        "output_dir": str(folder / "eval"),
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        "preprocessing": {"_target_": "Compose", "transforms": PREPROCESSING},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        **changes,
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    channels = {"0": "background", "1": "disc", "2": "core"}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def scan():
    return io.Image(balls.scan(), balls.OBLIQUE)


def test_labels_come_back_on_the_grid_of_an_oblique_scan_and_nothing_is_written(tmp_path, scan):
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    labels = run_bundle(bundle, scan)
    expected = np.where(scan.array > 150, 2, np.where(scan.array > 100, 1, 0))
    np.testing.assert_array_equal(labels, expected)
    assert nib.aff2axcodes(scan.affine) != ("R", "A", "S"), "the bundle has to turn the scan, and its labels back"
    assert not (tmp_path / "bundle" / "eval").exists()


def test_names_are_those_of_the_metadata(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    assert open_bundle(folder).names == {1: "disc", 2: "core"}
    (folder / "configs" / "metadata.json").write_text("{}")
    assert open_bundle(folder).names == {}


def test_weights_are_needed_and_read_as_tensors_only(tmp_path, scan):
    folder = write_bundle(tmp_path / "bundle")
    torch.save({"state": io.Image}, folder / "models" / "model.pt")
    with pytest.raises(InputError, match="does not work"):
        run_bundle(open_bundle(folder), scan)
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(FileError, match="no weights"):
        open_bundle(folder)


def test_another_folder_is_no_bundle(tmp_path):
    with pytest.raises(FileError, match="no MONAI bundle"):
        open_bundle(tmp_path)


def test_a_bundle_that_leaves_its_own_grid_is_refused(tmp_path, scan):
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": [2, 2, 3]}
    preprocessing = {"_target_": "Compose", "transforms": [*PREPROCESSING, spacing]}
    folder = write_bundle(tmp_path / "bundle", invert=False, preprocessing=preprocessing)
    with pytest.raises(GeometryError, match="Invertd"):
        run_bundle(open_bundle(folder), scan)


def test_a_bundle_that_crashes_says_why(tmp_path, scan):
    folder = write_bundle(tmp_path / "bundle", inferer={"_target_": "SimpleInferer", "nonsense": 1})
    with pytest.raises(InputError, match="the bundle does not work"):
        run_bundle(open_bundle(folder), scan)
