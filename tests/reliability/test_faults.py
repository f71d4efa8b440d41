"""Kills, full disks, read-only folders and damaged files, for real, in short; `make reliability` does more of them."""

import random
import stat
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("monailabel")

import faults
from load import server
from reliability import kill_under_requests
from sliceprop.errors import FileError

KILLS_BY_TIME, KILLS_BY_OPERATION, KILLED_TRAININGS, KILLED_SERVERS = 6, 8, 4, 2


@pytest.fixture(scope="module")
def victims():
    return faults.Victims()


@pytest.fixture
def studies(tmp_path):
    return faults.make_studies(tmp_path / "studies")


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(victims, studies):
    acknowledged = {}
    for seed in range(KILLS_BY_TIME):
        acknowledged |= victims.kill(faults.write_for_ever, studies, seed, longest_s=0.6)
        assert faults.lost(studies, acknowledged) == []
    for seed in range(KILLS_BY_TIME, KILLS_BY_TIME + KILLS_BY_OPERATION):
        operations = random.Random(seed).randrange(1, 150)
        acknowledged |= victims.kill(faults.write_for_ever, studies, seed, longest_s=0, operations=operations)
        assert faults.lost(studies, acknowledged) == []
    assert len(acknowledged) > 5


def test_a_killed_training_leaves_a_good_checkpoint(victims, studies):
    faults.submit(faults.open_workspace(studies), 66)
    file, before = studies / faults.CHECKPOINT, None
    for seed in range(KILLED_TRAININGS):
        operations = None if seed % 2 else random.Random(seed).randrange(20, 200)
        victims.kill(faults.train_for_ever, studies, seed, longest_s=1.5, operations=operations)
        assert faults.lost_model(studies, before) == []
        before = file.read_bytes() if file.is_file() else None


@pytest.mark.e2e
def test_a_killed_server_has_kept_what_it_acknowledged(studies):
    acknowledged = {}
    for seed in range(KILLED_SERVERS):
        with server(studies) as (address, process):
            acknowledged |= kill_under_requests(address, process, seed)
        assert faults.lost_drawings(studies, acknowledged) == []
    assert acknowledged


def test_a_full_disk_loses_nothing(victims, studies):
    faults.submit(faults.open_workspace(studies), 66)
    acknowledged, refused = {}, 0
    for seed in range(3):
        for said in victims.run(faults.work_with_little_space, studies, seed):
            if isinstance(said, tuple):
                acknowledged[said[0]] = said[1]
            refused += isinstance(said, str) and bool(said)
    assert refused > 0 and faults.lost(studies, acknowledged) == []


def test_a_real_disk_that_is_full_can_be_read_and_goes_on_when_there_is_space(tmp_path):
    with faults.small_disk(tmp_path / "disk", 4) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk is not permitted here; the limit on file sizes was tried instead")
        folder = faults.make_studies(tmp_path / "disk" / "studies")
        workspace = faults.open_workspace(folder)
        acknowledged = dict([faults.submit(workspace, 66)])
        filler = faults.fill_disk(tmp_path / "disk")
        with pytest.raises(FileError):
            faults.submit(workspace, 4)
        for program in (workspace, faults.open_workspace(folder)):  # the second starts on the full disk
            annotation = program.drawings.annotation(program.case(faults.STUDY))
            assert list(annotation.annotated_slices) == faults.slices_of(66)
        filler.unlink()
        acknowledged |= dict([faults.submit(workspace, 4)])
        assert faults.lost(folder, acknowledged) == []


def test_a_folder_that_has_become_read_only_is_read_and_not_changed(victims):
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = faults.make_studies(Path(place) / "studies")
        acknowledged = dict([faults.submit(faults.open_workspace(folder), 66)])
        assert victims.run(faults.work_read_only, folder, 4) == []
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
        assert faults.lost(folder, acknowledged) == []


def test_no_damaged_file_is_given_out(tmp_path):
    numbers = faults.make_history(tmp_path / "good")
    chance = random.Random(0)
    for file in faults.kept_files(tmp_path / "good"):
        copy = faults.copied(tmp_path / "good", tmp_path / "copy")
        place = file.relative_to(tmp_path / "good")
        kind = faults.damage(copy / place, chance)
        assert faults.served_wrongly(copy, tmp_path / "good", numbers) == [], f"{place} {kind}"
