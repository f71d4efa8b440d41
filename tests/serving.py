"""A real server process, and what its clients do; the synthetic study that they work on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import requests
import SimpleITK as sitk
from requests_toolbelt.multipart import decoder

from sliceprop.orthanc import Orthanc, start_orthanc
from sliceprop.serve import Programs

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300
SHAPE, AXIS, DRAWN = (40, 36, 14), 2, (2, 7, 11)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
NAMES = [{"name": "disc", "idx": 1}, {"name": "core", "idx": 2}]


def truth(seed: int = 0) -> np.ndarray:
    """Two columns that move and swell along the last axis."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    radius = 6 + 2 * np.sin(k / 4 + seed)
    labels = np.zeros(SHAPE, np.uint8)
    labels[(i - 13 - k * 0.3) ** 2 + (j - 18) ** 2 < radius**2] = 1
    labels[(i - 28) ** 2 + (j - 12 - k * 0.4) ** 2 < (radius - 2) ** 2] = 2
    return labels


def scan(seed: int = 0) -> np.ndarray:
    return (truth(seed) * 120 + np.random.default_rng(seed).normal(100, 8, SHAPE)).astype(np.int16)


def only(labels: np.ndarray, slices: tuple[int, ...] = DRAWN) -> np.ndarray:
    sparse = np.zeros_like(labels)
    sparse[..., list(slices)] = labels[..., list(slices)]
    return sparse


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return bytes(nib.Nifti1Image(array, affine).to_bytes())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """An archive for the length of a test; Ctrl-C still ends the tests."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Programs() as programs:
        orthanc = start_orthanc(programs, folder)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
        yield orthanc


def eventually(condition: Callable[[], Any], what: str, every_s: float = 0.2) -> Any:
    """The first true value of `condition`, which is asked every so often."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}")


@dataclass
class Client:
    """Speaks to one server as a front end does."""

    url: str
    folder: Path

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=PATIENCE_S, **options)

    def ok(self, method: str, path: str, **options: Any) -> Any:
        response = self.call(method, path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def add_image(self, image: str, seed: int = 0) -> str:
        self.ok("PUT", f"/datastore/image?image={image}", files={"file": (f"{image}.nii", nifti(scan(seed)))})
        return image

    def voxels(self, image: str, kind: str = "labels") -> np.ndarray:
        response = self.call("GET", f"/labelprop/voxels?image={image}&kind={kind}")
        assert response.status_code == 200, response.text
        shape = [int(size) for size in response.headers["X-Shape"].split(",")]
        return np.frombuffer(response.content, response.headers["X-Dtype"]).reshape(shape, order="F")

    def study(self, image: str) -> dict[str, Any]:
        return dict(self.ok("GET", f"/labelprop/study?image={image}"))

    def paint(self, image: str, labels: np.ndarray, tag: str = "sparse", **params: Any) -> requests.Response:
        """Submit as the panel in OHIF does."""
        files = {"label": ("label.bin", labels.tobytes(order="F"))}
        data = {"params": json.dumps({"label_info": NAMES, **params})}
        return self.call("PUT", f"/datastore/label?image={image}&tag={tag}", files=files, data=data)

    def submit(self, image: str, labels: np.ndarray, tag: str | None = "sparse", **params: Any) -> Any:
        query = f"/datastore/label?image={image}" + (f"&tag={tag}" if tag else "")
        params = {"label_info": NAMES, **params}
        return self.ok("PUT", query, files={"label": ("l.nii", nifti(labels))}, data={"params": json.dumps(params)})

    def infer(
        self, query: str, model: str = "labelprop", label: tuple[str, bytes] | None = None, **params: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        response = self.call(
            "POST",
            f"/infer/{model}?{query}",
            data={"params": json.dumps({"result_extension": ".nrrd", **params})},
            files={"label": label} if label else {"none": ("", b"")},
        )
        assert response.status_code == 200, response.text
        parts = decoder.MultipartDecoder.from_response(response).parts
        file = self.folder / "result.nrrd"
        file.write_bytes(parts[1].content)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T, json.loads(parts[0].content)

    def stats(self) -> dict[str, Any]:
        return dict(self.ok("GET", "/info/")["train_stats"]["labelprop"])

    def next_slice(self, image: str, strategy: str = "next_slice") -> dict[str, Any]:
        return dict(self.ok("POST", f"/activelearning/{strategy}", json={"image": image} if image else {}))

    def train(self, image: str, budget_s: float = 2) -> None:
        self.ok("POST", "/train/labelprop", json={"image": image, "budget_s": budget_s})
        eventually(lambda: self.stats()["status"] in ("DONE", "ERROR"), "the training to end")


@dataclass
class Server:
    """A server process on a folder of studies, or an archive; it may end and start again at its port."""

    studies: Path | str
    work: Path
    conf: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Client:
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(ROOT / "apps" / "labelprop")]
        command += ["--studies", str(self.studies), "--host", "127.0.0.1", "--port", str(self.port)]
        command += [part for pair in self.conf.items() for part in ("--conf", *pair)]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": path, "MONAI_LABEL_SESSION_PATH": str(self.work / "sessions")}
        environment = os.environ | own | self.environment
        self.log = (self.work / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.work, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        client = Client(f"http://127.0.0.1:{self.port}", self.work)
        try:
            eventually(lambda: self._ready(client), "the server to answer")
        except BaseException:
            self.__exit__()
            raise
        return client

    def _ready(self, client: Client) -> bool:
        assert self.process.poll() is None, (self.work / "server.log").read_text()
        try:
            return client.call("GET", "/info/").ok
        except requests.ConnectionError:
            return False

    def kill(self) -> None:
        """End it with all that it started, at once, as when a machine loses power."""
        server = psutil.Process(self.process.pid)
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        self.process.wait(PATIENCE_S)
        self.log.close()

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()
