"""A cohort from files to files: what is done, what is left, what fails, and what a second run does."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dask
import nibabel as nib
import numpy as np
import pytest
from distributed import Client, LocalCluster, WorkerPlugin
from filelock import FileLock

from cohorts import AFFINE, write_study
from phantoms import dice, moving_disc
from serving import eventually
from sliceprop.cohort import workers
from sliceprop.cohort.finding import Entry, find_studies
from sliceprop.cohort.run import Cohort, _work_off, run_cohort
from sliceprop.cohort.work import CohortConfig, Task, finished, run_study
from sliceprop.cohort.workers import WorkersConfig, offers
from sliceprop.config import PropagateConfig, TrainConfig
from sliceprop.errors import InputError
from sliceprop.hashing import digest
from sliceprop.io import Image, read_image, write_image
from sliceprop.warm_start import SHIPPED

QUICK = CohortConfig(propagate=PropagateConfig("shape"), device="cpu", pictures=False)
SHORT = TrainConfig(max_epochs=1, refine_steps=4)
THREADS = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0", "silence_logs": False}


def run(source: Path, output: Path, scheduler: str, config: CohortConfig = QUICK, **options: Any) -> Cohort:
    return run_cohort(find_studies(source), output, config, WorkersConfig(scheduler=scheduler), **options)


def told(result: Cohort) -> dict[str, str]:
    """Reason by the name of the folder of the scan."""
    return {Path(failure.name).parent.name: failure.reason for failure in result.failures}


def written(output: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in output.glob("*/labels.nii.gz")}


def test_results_lie_on_the_grid_of_each_scan_whatever_its_orientation(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/straight")
    write_study(tmp_path / "in/turned", seed=1, affine=np.diag([1.0, -1.0, 3.0, 1.0]), axes=(1, 2, 0))
    progress = []
    result = run(tmp_path / "in", tmp_path / "out", scheduler, progress=lambda *event: progress.append(event))
    assert not result.failures
    assert {each["id"] for each in result.summaries} == {"straight_image", "turned_image"}
    for name, seed, axes in (("straight", 0, (0, 1, 2)), ("turned", 1, (1, 2, 0))):
        found, scan = (
            read_image(tmp_path / f"out/{name}_image/labels.nii.gz"),
            read_image(tmp_path / f"in/{name}/image.nii.gz"),
        )
        np.testing.assert_allclose(found.affine, scan.affine)
        truth = moving_disc(seed=seed)[1].transpose(axes)
        np.testing.assert_array_equal(found.array.take(5, axes.index(0)), truth.take(5, axes.index(0)))
        drawn = read_image(tmp_path / f"out/{name}_image/drawn.nii.gz").array
        rest = tuple(axis for axis in range(3) if axis != axes.index(0))
        np.testing.assert_array_equal(np.flatnonzero(drawn.any(axis=rest)), [1, 5, 9])
        assert drawn.take([1, 5, 9], axes.index(0)).all()
        assert dice(found.array == 7, truth == 7) > 0.9
    assert progress[0] == (0, 2, 0)
    assert progress[-1] == (2, 2, 0)


def test_reports_tell_quality_next_slice_and_what_to_review_first(tmp_path: Path, scheduler: str) -> None:
    for n in range(2):
        write_study(tmp_path / f"in/{n}&<b>", seed=n)
    config = CohortConfig(propagate=PropagateConfig("shape"), device="cpu", names={7: "the <shrinking> disc"})
    result = run(tmp_path / "in", tmp_path / "out", scheduler, config)
    assert [each["weakest_dice"] for each in result.summaries] == sorted(
        each["weakest_dice"] for each in result.summaries
    )
    report = json.loads((tmp_path / "out/0&<b>_image/report.json").read_text())
    assert report["annotated_slices"] == [1, 5, 9]
    assert report["label_names"] == {"1": "label 1", "7": "the <shrinking> disc"}
    assert report["suggestion"]["slice"] not in {1, 5, 9, None}
    table = json.loads((tmp_path / "out/cohort.json").read_text())
    assert table["finished"] == 2
    assert [each["id"] for each in table["studies"]] == [each["id"] for each in result.summaries]
    pages = [tmp_path / "out/index.html", tmp_path / "out/0&<b>_image/report.html"]
    assert f"{report['suggestion']['slice']} along axis {report['slice_axis']}<" in pages[0].read_text()
    for page in pages:
        text = page.read_text()
        assert "http" not in text
        assert "<shrinking>" not in text
        assert "&lt;b&gt;" in text
        for link in re.findall(r'(?:src|href)="([^"]+)"', text):
            assert (page.parent / unquote(link)).is_file()
    assert (tmp_path / "out/0&<b>_image/overlay.png").read_bytes()[1:4] == b"PNG"


def test_what_is_done_stays_and_what_changed_is_done_again(tmp_path: Path, scheduler: str) -> None:
    for name in "ab":
        write_study(tmp_path / "in" / name, seed=ord(name))
    run(tmp_path / "in", tmp_path / "out", scheduler)
    before = written(tmp_path / "out")
    write_study(tmp_path / "in/c", seed=3)
    os.utime(tmp_path / "in/b/labels.nii.gz", ns=(0, 0))
    result = run(tmp_path / "in", tmp_path / "out", scheduler)
    after = written(tmp_path / "out")
    assert (result.resumed, len(result.summaries)) == (1, 3)
    assert {name for name in before if after[name] != before[name]} == {"b_image"}
    assert run(tmp_path / "in", tmp_path / "out", scheduler).resumed == 3
    other = CohortConfig(propagate=PropagateConfig("nearest"), device="cpu", pictures=False)
    assert run(tmp_path / "in", tmp_path / "out", scheduler, other).resumed == 0
    assert run(tmp_path / "in", tmp_path / "out", scheduler, other, redo=True).resumed == 0


def test_a_study_without_its_report_is_not_done(tmp_path: Path) -> None:
    write_study(tmp_path / "a")
    task = Task(Entry("a", tmp_path / "a/image.nii.gz", tmp_path / "a/labels.nii.gz"), tmp_path / "out", QUICK)
    assert finished(task) is None
    report = run_study(task)
    assert finished(task) == json.loads(json.dumps(report))
    for content in ("", "{", "[]", "{}"):
        (tmp_path / "out/report.json").write_text(content)
        assert finished(task) is None


def test_every_kind_of_failure_is_told_and_stops_no_other_study(tmp_path: Path, scheduler: str) -> None:
    bad = ["empty", "none", "truncated", "missing", "text", "moved", "turned", "flat", "twin"]
    for seed, name in enumerate(["good", *bad, "last"]):
        write_study(tmp_path / "in" / name, seed=seed)
    folder = {name: tmp_path / "in" / name for name in bad}
    scan = read_image(folder["empty"] / "image.nii.gz")
    write_image(folder["empty"] / "labels.nii.gz", np.zeros(scan.array.shape, np.uint8), scan)
    (folder["none"] / "labels.nii.gz").unlink()
    whole = (folder["truncated"] / "image.nii.gz").read_bytes()
    (folder["truncated"] / "image.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder["text"] / "image.nii.gz").write_text("no scan")
    labels = read_image(folder["moved"] / "labels.nii.gz").array
    write_image(folder["moved"] / "labels.nii.gz", labels, Image(labels, AFFINE @ np.diag([1, -1, 1, 1])))
    turned = labels.transpose(2, 0, 1)
    write_image(folder["turned"] / "labels.nii.gz", turned, Image(turned, AFFINE))
    write_image(folder["flat"] / "image.nii.gz", np.zeros(scan.array.shape, np.uint8), scan)
    for name in ("image", "labels"):
        (folder["twin"] / f"{name}.nii.gz").write_bytes((tmp_path / "in/good" / f"{name}.nii.gz").read_bytes())
    rows = [f"in/{name}/image.nii.gz,in/{name}/labels.nii.gz" for name in ["good", *bad, "last", "good"]]
    rows[bad.index("none") + 1] = "in/none/image.nii.gz,"
    (folder["missing"] / "image.nii.gz").unlink()
    (tmp_path / "list.csv").write_text("\n".join(["image,labels", *rows]))
    result = run(tmp_path / "list.csv", tmp_path / "out", scheduler)
    reasons = told(result)
    expected = {
        "empty": "nothing is annotated yet",
        "none": "no labels",
        "truncated": "may be truncated",
        "missing": "no such file",
        "text": "cannot be read",
        "moved": "resample",
        "turned": "same grid",
        "flat": "is constant",
        "twin": "same voxels and labels as",
    }
    for name, reason in expected.items():
        assert reason in reasons.get(name, ""), name
    assert "more than once" in reasons["good"]
    assert set(reasons) == {*expected, "good"}
    assert all("\n" not in reason for reason in reasons.values())
    assert set(written(tmp_path / "out")) == {"good_image", "twin_image", "last_image"}
    table = json.loads((tmp_path / "out/cohort.json").read_text())
    assert {each["name"] for each in table["failed"]} == {failure.name for failure in result.failures}
    assert {each["id"] for each in result.summaries} == {"good_image", "last_image"}
    assert (table["finished"], len(table["failed"]), len(rows)) == (2, 10, 12)
    assert "<p>2 finished, 10 failed." in (tmp_path / "out/index.html").read_text()
    assert run(tmp_path / "list.csv", tmp_path / "out", scheduler).resumed == 2
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_study_that_fails_leaves_no_empty_folder(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/a")
    (tmp_path / "in/a/labels.nii.gz").write_text("no labels")
    assert told(run(tmp_path / "in", tmp_path / "out", scheduler)).keys() == {"a"}
    assert not any(each.is_dir() for each in (tmp_path / "out").iterdir())


def test_after_a_move_the_reports_tell_the_new_places(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "old/in/a")
    run(tmp_path / "old/in", tmp_path / "old/out", scheduler)
    (tmp_path / "old").rename(tmp_path / "new")
    again = run(tmp_path / "new/in", tmp_path / "new/out", scheduler)
    assert (again.resumed, again.failures) == (1, [])
    report = json.loads((tmp_path / "new/out/image/report.json").read_text())
    assert (report["image"], report["labels"]) == tuple(
        str(tmp_path / f"new/in/a/{name}.nii.gz") for name in ("image", "labels")
    )
    assert str(tmp_path / "old") not in (tmp_path / "new/out/cohort.json").read_text()


def test_a_full_disk_fails_the_study_that_meets_it(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_study(tmp_path / "in" / name, seed=ord(name))
    save = nib.save

    def full(image: Any, path: Path) -> None:
        save(image, path)
        if "b_image" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    result = run(tmp_path / "in", tmp_path / "out", scheduler)
    assert told(result).keys() == {"b"}
    assert "No space left on device" in told(result)["b"]
    assert not list(tmp_path.rglob(".writing-*"))
    monkeypatch.undo()
    again = run(tmp_path / "in", tmp_path / "out", scheduler)
    assert (again.resumed, len(again.summaries), again.failures) == (2, 3, [])


def test_results_never_replace_what_is_read(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/a")
    with pytest.raises(InputError, match="another folder"):
        run(tmp_path / "in", tmp_path / "in", scheduler)
    with pytest.raises(InputError, match="another folder"):
        run(tmp_path / "in", tmp_path, scheduler)
    assert {file.name for file in (tmp_path / "in").rglob("*")} == {"a", "image.nii.gz", "labels.nii.gz"}


def test_one_run_at_a_time_in_a_folder(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/a")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(InputError, match="another run"):
        run(tmp_path / "in", tmp_path / "out", scheduler)
    assert not run(tmp_path / "in", tmp_path / "out", scheduler).failures


def test_a_given_model_of_the_study_is_used_and_another_one_starts_learning(tmp_path: Path, scheduler: str) -> None:
    method = PropagateConfig("registration")
    write_study(tmp_path / "in/a")
    learning = CohortConfig(train=SHORT, propagate=method, device="cpu", pictures=False, keep_models=True)
    run(tmp_path / "in", tmp_path / "out", scheduler, learning)
    write_study(tmp_path / "in/b", seed=1)
    model = tmp_path / "out/image/model.safetensors"
    config = CohortConfig(train=SHORT, propagate=method, device="cpu", pictures=False, model=model)
    run(tmp_path / "in", tmp_path / "again", scheduler, config)
    reports = {name: json.loads((tmp_path / f"again/{name}_image/report.json").read_text()) for name in "ab"}
    assert (reports["a"]["learned"], reports["b"]["learned"]) == (False, True)
    assert reports["a"]["trained"] and reports["b"]["trained"]
    described = {"path": str(model), "sha256": digest(model)}
    assert [(reports[name]["model"], reports[name]["init"]) for name in "ab"] == [(described, None), (None, described)]
    first, again = (read_image(tmp_path / f"{each}/labels.nii.gz").array for each in ("out/image", "again/a_image"))
    np.testing.assert_array_equal(first, again)


def test_the_reports_name_what_learning_started_from(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/a")
    method = PropagateConfig("registration")
    starts = {"shipped": str(SHIPPED), "nothing": "nothing", "shape": None}
    for name, start in starts.items():
        config = CohortConfig(train=SHORT, propagate=method, device="cpu", pictures=False, shipped=name == "shipped")
        (told,) = run(tmp_path / "in", tmp_path / name, scheduler, QUICK if start is None else config).summaries
        assert told["start"] == start
        assert json.loads((tmp_path / name / "cohort.json").read_text())["studies"][0]["start"] == start
        page, pages = (tmp_path / name / "image/report.html").read_text(), (tmp_path / name / "index.html").read_text()
        assert ("Learning started from" in page) == (start is not None)
        assert f"Learning started from {start}." in page or start is None
        assert f'<td title="{start or ""}">{Path(start or "-").name}' in pages


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 1.0)


def test_a_scheduler_that_goes_away_loses_nothing_that_is_done(tmp_path: Path, scheduler: str, impatient: None) -> None:
    for name in "abcdef":
        write_study(tmp_path / "in" / name, seed=ord(name))
    with LocalCluster(n_workers=1, **THREADS) as cluster:

        def stop(done: int, total: int, failed: int) -> None:
            if done == 2:
                cluster.close()

        result = run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address, progress=stop)
    assert len(result.summaries) >= 2
    assert result.failures
    assert all("scheduler went away" in failure.reason for failure in result.failures)
    assert len(result.summaries) + len(result.failures) == 6
    again = run(tmp_path / "in", tmp_path / "out", scheduler)
    assert again.resumed >= len(result.summaries)
    assert len(again.summaries) == 6


def test_gpus_are_asked_for_where_workers_offer_them(tmp_path: Path, scheduler: str) -> None:
    write_study(tmp_path / "in/a")
    config = CohortConfig(propagate=PropagateConfig("nearest"), device="cuda", pictures=False)
    assert "no worker offers a GPU" in told(run(tmp_path / "in", tmp_path / "out", scheduler, config))["a"]
    with LocalCluster(n_workers=1, resources={"GPU": 1}, **THREADS) as cluster:
        config = CohortConfig(propagate=PropagateConfig("nearest"), pictures=False)
        assert not run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address, config).failures


def test_no_scheduler(tmp_path: Path, impatient: None) -> None:
    write_study(tmp_path / "in/a")
    with pytest.raises(InputError, match="no scheduler answers"):
        run(tmp_path / "in", tmp_path / "out", "tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="no scheduler answers"):
        run(tmp_path / "in", tmp_path / "out", "nonsense://x")


def test_a_scheduler_that_goes_away_before_a_worker_comes(tmp_path: Path, impatient: None) -> None:
    write_study(tmp_path / "in/a")
    with LocalCluster(n_workers=0, **THREADS) as cluster:
        scheduler = cluster.scheduler
        identity = scheduler.handlers["identity"]

        def last_words(**asked: Any) -> Any:
            if any(name.startswith("Client-") for name in scheduler.clients):  # one that waits for workers asks
                scheduler.loop.add_callback(cluster.close)
            return identity(**asked)

        scheduler.handlers["identity"] = last_words
        with pytest.raises(InputError, match="the scheduler went away"):
            run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address)


def test_no_worker_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START_S", 0.5)
    write_study(tmp_path / "in/a")
    with (
        LocalCluster(n_workers=0, **THREADS) as cluster,
        pytest.raises(InputError, match=r"no worker came within 0.5 s"),
    ):
        run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address)


def test_a_worker_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    write_study(tmp_path / "in/a")
    with LocalCluster(n_workers=0, **THREADS) as cluster:
        scheduler = cluster.scheduler
        identity, asked = scheduler.handlers["identity"], list[str]()

        def start_one(**options: Any) -> Any:
            if any(name.startswith("Client-") for name in scheduler.clients) and not asked:
                asked.append("a worker")
                scheduler.loop.add_callback(cluster.scale, 1)
            return identity(**options)

        scheduler.handlers["identity"] = start_one
        assert len(run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address).summaries) == 1
    assert asked


def test_a_scheduler_that_goes_away_after_its_workers_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sliceprop.cohort.run.LOOK_S", 0.2)
    write_study(tmp_path / "in/a")
    [entry], _ = find_studies(tmp_path / "in")
    told = list[Any]()
    with LocalCluster(n_workers=0, **THREADS) as cluster, Client(cluster, timeout=1, set_as_default=False) as client:
        assert not offers(client)
        cluster.close()
        eventually(lambda: client.status == "closed", "the client to notice")
        _work_off(client, [Task(entry, tmp_path / "out", QUICK)], told.append)
    assert not told


def killer(folder: Path) -> WorkerPlugin:
    """Kills a worker whenever it starts on the study `poison`, and the first time that it starts on `unlucky`."""

    class Killer(WorkerPlugin):
        def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
            if finish != "executing":
                return
            if "poison" in key or ("unlucky" in key and not (folder / "killed").exists()):
                (folder / ("poisoned" if "poison" in key else "killed")).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return Killer()


def test_a_study_whose_worker_is_killed_is_done_again(tmp_path: Path) -> None:
    for name in ("fine", "poison", "unlucky"):
        write_study(tmp_path / "in" / name, seed=len(name))
    cpu = CohortConfig(propagate=PropagateConfig("nearest"), device="cpu", pictures=False)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(killer(tmp_path))
        result = run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address, cpu)
    assert (tmp_path / "killed").exists() and (tmp_path / "poisoned").exists()
    assert {each["id"] for each in result.summaries} == {"fine_image", "unlucky_image"}
    assert told(result).keys() == {"poison"}
    assert "the worker died" in told(result)["poison"]


def test_a_job_that_ends_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sliceprop.cohort.run.LOOK_S", 0.2)
    write_study(tmp_path / "in/only")
    [entry], _ = find_studies(tmp_path / "in")
    task, reports = Task(entry, tmp_path / "out", CohortConfig(propagate=PropagateConfig("nearest"))), list[Any]()
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        LocalCluster(n_workers=1, **THREADS) as cluster,
        Client(cluster, set_as_default=False) as client,
        client.as_current(),
    ):
        cluster.sync(cluster.workers[0].close)  # as SLURM does when a job's time is up
        eventually(lambda: not offers(client), "the scheduler to notice")
        _work_off(client, [task], reports.append)
    assert [report["id"] for report in reports] == [entry.id]
    assert "there is no worker; waiting" in caplog.text


PAGES = """
import resource, sys
from pathlib import Path
import numpy as np
from sliceprop.cohort.finding import Entry
from sliceprop.cohort.work import CohortConfig, Failure, Task, run_study

def faults(blocks=100):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        np.ones(1 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
missing = Path("missing.nii.gz")
assert isinstance(run_study(Task(Entry("x", missing, missing), Path(sys.argv[1]), CohortConfig())), Failure)
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_workers_keep_the_memory_that_they_free(tmp_path: Path) -> None:
    """As Dask starts them, each megabyte would be 256 new pages."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PAGES, str(tmp_path / "out")]
    before, after = map(int, subprocess.run(command, env=environment, check=True, capture_output=True).stdout.split())
    assert before > 100 * 200
    assert after < 100 * 20
