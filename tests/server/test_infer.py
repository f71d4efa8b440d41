"""A study is free while a result of it is made."""

import tempfile
from threading import Event, Thread
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.tasks.infer_v2 import InferType

from columns import AFFINE, column
from sliceprop.io import read_image, write_image
from sliceprop.server.app import LabelPropApp
from sliceprop.server.errors import ConflictError, NotFoundError
from sliceprop.server.infer import PropagateTask
from sliceprop.server.panel import study_state, voxels
from sliceprop.server.tools import Model, ToolTask

PATIENCE_S = 60


class Pause:
    """Stops a computation until the test lets it go on."""

    def __init__(self):
        self.began, self.may_go_on = Event(), Event()

    def __call__(self):
        self.began.set()
        assert self.may_go_on.wait(PATIENCE_S)


class PausedTask(PropagateTask):
    def __init__(self, workspace, pause):
        super().__init__(workspace, 0.95)
        self._pause = pause

    def _propagate(self, *given):
        self._pause()
        return super()._propagate(*given)


def meanwhile(task, pause, request, do):
    """Do something in the midst of a request; its answer."""
    answers = []
    thread = Thread(target=lambda: answers.append(task(request)), daemon=True)
    thread.start()
    assert pause.began.wait(PATIENCE_S)
    other = Thread(target=do, daemon=True)
    other.start()
    other.join(PATIENCE_S)
    free = not other.is_alive()
    pause.may_go_on.set()
    thread.join(PATIENCE_S)
    assert free
    return answers[0]


def test_who_submits_and_reads_does_not_wait_for_a_propagation(workspace, submit):
    submit(column([2, 7]))
    case, pause, seen = workspace.case("case"), Pause(), []

    def draw_on():
        submit(column([2, 5, 7]))
        seen.append(study_state(workspace, case, {})["annotated_slices"])

    request = {"image_id": "case", "method": "nearest"}
    _, told = meanwhile(PausedTask(workspace, pause), pause, request, draw_on)
    assert seen == [[2, 5, 7]] and told["annotated_slices"] == [2, 7]
    state = study_state(workspace, case, {})
    assert state["annotated_slices"] == [2, 5, 7] and not state["result"]["current"]
    shown, _ = voxels(workspace, case, "labels")
    np.testing.assert_array_equal(shown[..., [2, 5, 7]], column([2, 5, 7])[..., [2, 5, 7]])


def test_an_estimate_holds_for_what_it_was_made_from(workspace, submit):
    submit(column([2, 7]))
    pause = Pause()
    request = {"image_id": "case", "target": 0.01}
    meanwhile(PausedTask(workspace, pause), pause, request, lambda: submit(column([2, 5, 7])))
    assert workspace.studies_by_need(0.01) == (["case"], [])
    PropagateTask(workspace, 0.01)(request)
    assert workspace.studies_by_need(0.01) == ([], ["case"])


def test_who_submits_does_not_wait_for_a_tool(workspace, submit):
    submit(column([2, 7]))
    pause = Pause()

    def run(scene, options):
        pause()
        return np.ones_like(scene.before)

    task = ToolTask(workspace, "all", Model(run, InferType.SEGMENTATION, "marks everything", {}))
    _, told = meanwhile(task, pause, {"image_id": "case"}, lambda: submit(column([2, 5, 7])))
    assert told["draft"]
    assert workspace.drawings.annotation(workspace.case("case")).annotated_slices == (2, 5, 7)


@pytest.mark.parametrize("exchanged", ["while it is made", "before it is stored"])
@pytest.mark.parametrize("model", ["labelprop", "all"])
def test_no_result_becomes_that_of_another_scan(workspace, submit, tmp_path, monkeypatch, model, exchanged):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    submit(column([2, 7]))
    case = workspace.case("case")

    def exchange():
        nib.save(nib.Nifti1Image(read_image(case.image).array[::-1], AFFINE), case.image)

    def run(scene, options):
        if exchanged == "while it is made":
            exchange()
        return np.ones_like(scene.before)

    task = ToolTask(workspace, "all", Model(run, InferType.SEGMENTATION, "marks everything", {}))
    if model == "labelprop":
        task = PropagateTask(workspace, 0.95)
        propagate = task._propagate
        monkeypatch.setattr(task, "_propagate", lambda *given: (run(Mock(before=0), {}), propagate(*given))[1])
    with pytest.raises(ConflictError, match="another scan"):
        reply = task.reply({"image_id": "case", "method": "nearest"})
        assert exchanged == "before it is stored"
        exchange()
        app = Mock(known=lambda *names: Mock(reply=lambda request: reply), workspace=workspace)
        app._store = lambda *given: LabelPropApp._store(app, *given)
        LabelPropApp.infer(app, {"image": "case", "save_label": True, "label_tag": "auto"}, workspace.store)
    assert workspace.store.label_file("case", "auto") is None and not list((tmp_path / "results").iterdir())
    assert case.record.result("labels") is None and not case.record.outlines()


def test_a_request_for_a_model_that_is_not_there_leaves_no_name(workspace, submit, tmp_path):
    submit(column([2, 7]))
    file = tmp_path / "labels.nii.gz"
    write_image(file, column([2, 7]), workspace.scan(workspace.case("case")))
    names = workspace.names.indices
    request = {"image_id": "case", "label": file, "label_info": [{"name": "new", "idx": 1}], "init": "absent"}
    with pytest.raises(NotFoundError):
        PropagateTask(workspace, 0.95)(request)
    assert workspace.names.indices == names
    PropagateTask(workspace, 0.95)({**request, "init": "none", "method": "nearest"})
    assert "new" in workspace.names.indices
