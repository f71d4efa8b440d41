"""A server whose trainings go to Dask workers that it starts itself, for users with tokens; and its batch inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

pytest.importorskip("distributed")

from serving import DRAWN, Client, Server, eventually, only, truth
from sliceprop.tokens import add_token

pytestmark = pytest.mark.e2e


@dataclass
class User(Client):
    """A client with a token."""

    token: str = ""

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return super().call(method, path, headers={"Authorization": f"Bearer {self.token}"}, **options)


class Guarded(Server):
    """A server that asks for tokens."""

    def _ready(self, client: Client) -> bool:
        try:
            return client.call("GET", "/healthz").ok
        except requests.ConnectionError:
            return False


def test_users_train_at_once_and_workers_end_with_the_server(tmp_path: Path) -> None:
    tokens = {name: add_token(tmp_path / "tokens", name, "train") for name in ("anna", "ben")}
    conf = {"scheduler": "local", "workers": "1", "token_file": str(tmp_path / "tokens")}
    server = Guarded(tmp_path / "studies", tmp_path, conf)
    with server as client:
        anna, ben = (User(client.url, client.folder, token) for token in tokens.values())
        assert anna.stats()["status"] == "NONE"
        assert anna.call("GET", "/train/").status_code == 404
        for seed, image in enumerate(("one", "two", "three")):
            anna.add_image(image, seed)
            anna.submit(image, only(truth(seed)))
        assert anna.ok("GET", "/labelprop/versions?image=one")["versions"][0]["by"]["user"] == "anna"

        anna.ok("POST", "/train/labelprop", json={"image": "one", "budget_s": 600})
        task = ben.ok("POST", "/train/labelprop", json={"image": "two"})
        assert task["status"] == "SUBMITTED" and task["request"] == {"image": "two", "user": "ben"}
        assert anna.call("POST", "/train/labelprop", json={"image": "two"}).status_code == 429
        eventually(lambda: anna.stats()["epoch"] > 0, "the first epoch")
        assert anna.study("one")["training"]["image"] == "one"
        for user, image, status in ((anna, "one", "RUNNING"), (ben, "two", "SUBMITTED")):
            assert user.ok("GET", "/train/?check_if_running=true")["request"]["image"] == image
            progress = user.ok("GET", "/labelprop/progress")
            assert (progress["image"], progress["status"]) == (image, status)
            assert (user.stats()["image"], user.stats()["status"]) == (image, status)
        assert anna.ok("GET", "/labelprop/progress?image=two")["status"] == "SUBMITTED"

        assert anna.ok("POST", "/train/labelprop", json={"image": "three"})["request"]["image"] == "three"
        assert anna.ok("DELETE", "/train/?image=three")["status"] == "STOPPED"
        assert anna.ok("DELETE", "/train/")["details"]
        assert anna.ok("GET", "/labelprop/progress?image=two")["status"] != "STOPPED"
        eventually(lambda: ben.ok("GET", "/labelprop/progress")["status"] == "DONE", "the other one")
        assert ben.ok("GET", "/labelprop/progress?image=one")["status"] in ("STOPPED", "DONE")
        assert {each["request"]["image"] for each in ben.ok("GET", "/train/?all=true")} == {"one", "two", "three"}
        assert ben.call("GET", "/train/?check_if_running=true").status_code == 404
        assert ben.ok("DELETE", "/train/") is None
        assert ben.infer("image=two")[1]["trained"]
        assert anna.ok("POST", "/train/labelprop?run_sync=true", json={"image": "one"})["status"] == "DONE"

        assert anna.call("POST", "/batch/infer/labelprop", json={"label_tag": "sparse"}).status_code == 400
        anna.ok("POST", "/batch/infer/labelprop?images=all", json={"label_tag": "round_one", "method": "nearest"})
        eventually(lambda: anna.ok("GET", "/batch/infer")["status"] == "DONE", "the batch to end")
        for seed, image in enumerate(("one", "two")):
            label = nib.load(tmp_path / "studies/labels/round_one" / f"{image}.nii.gz")
            values = np.asarray(label.dataobj)[..., list(DRAWN)]
            np.testing.assert_array_equal(values, truth(seed)[..., list(DRAWN)])
            info = anna.ok("GET", f"/datastore/image/info?image={image}")
            assert info["batch"] == {"model": "labelprop", "label_tag": "round_one", "error": None}
        left = psutil.Process(server.process.pid).children(recursive=True)
    assert left and not psutil.wait_procs(left, timeout=60)[1]
