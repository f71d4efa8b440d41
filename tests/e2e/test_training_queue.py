"""A server whose trainings go to Dask workers that it starts itself, and its batch inference."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

pytest.importorskip("distributed")

from serving import DRAWN, Server, eventually, only, truth

pytestmark = pytest.mark.e2e


def test_workers_train_for_stock_clients_and_end_with_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "studies", tmp_path, {"scheduler": "local", "workers": "1"})
    with server as client:
        assert client.stats()["status"] == "NONE"
        assert client.call("GET", "/train/").status_code == 404
        for seed, image in enumerate(("one", "two")):
            client.add_image(image, seed)
            client.submit(image, only(truth(seed)))
        client.ok("POST", "/train/labelprop", json={"image": "one", "budget_s": 600})
        task = client.ok("POST", "/train/labelprop", json={"image": "two"})
        assert task["status"] == "SUBMITTED" and task["request"]["image"] == "two"
        assert client.call("POST", "/train/labelprop", json={"image": "two"}).status_code == 429
        eventually(lambda: client.stats()["epoch"] > 0, "the first epoch")
        assert client.ok("GET", "/train/?check_if_running=true")["request"]["image"] == "one"
        assert client.study("one")["training"]["image"] == "one"
        assert client.ok("GET", "/labelprop/progress?image=two")["status"] == "SUBMITTED"
        assert client.ok("GET", "/labelprop/progress")["image"] == "one"
        assert client.ok("DELETE", "/train/?image=one")["details"]
        eventually(lambda: client.ok("GET", "/labelprop/progress?image=two")["status"] == "DONE", "the other one")
        assert client.ok("GET", "/labelprop/progress?image=one")["status"] in ("STOPPED", "DONE")
        assert [each["request"]["image"] for each in client.ok("GET", "/train/?all=true")] == ["one", "two"]
        assert client.call("GET", "/train/?check_if_running=true").status_code == 404
        assert client.ok("DELETE", "/train/") is None
        assert client.infer("image=two")[1]["trained"]
        assert client.ok("POST", "/train/labelprop?run_sync=true", json={"image": "one"})["status"] == "DONE"

        client.ok("POST", "/batch/infer/labelprop?images=all", json={"label_tag": "round_one", "method": "nearest"})
        eventually(lambda: client.ok("GET", "/batch/infer")["status"] == "DONE", "the batch to end")
        for seed, image in enumerate(("one", "two")):
            label = nib.load(tmp_path / "studies/labels/round_one" / f"{image}.nii.gz")
            values = np.asarray(label.dataobj)[..., list(DRAWN)]
            np.testing.assert_array_equal(values, truth(seed)[..., list(DRAWN)])
            info = client.ok("GET", f"/datastore/image/info?image={image}")
            assert info["batch"] == {"model": "labelprop", "label_tag": "round_one", "error": None}
        left = psutil.Process(server.process.pid).children(recursive=True)
    assert left and not psutil.wait_procs(left, timeout=60)[1]
