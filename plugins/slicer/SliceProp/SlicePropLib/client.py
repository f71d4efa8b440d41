"""Speaks HTTP to a server of `apps/labelprop`, with the standard library and numpy, which 3D Slicer ships."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE_S = 600


class ServerError(Exception):
    """The server refused, or does not answer; the message is for the user."""


class Client:
    """One server.

    Args:
        url: such as `http://127.0.0.1:8000`.
        token: from the operator of a server that asks for one; empty without.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url, self._token = url.strip().rstrip("/"), token.strip()

    def info(self) -> dict[str, Any]:
        """Name, labels and models of the app."""
        return self._json("GET", "/info/")

    def studies(self) -> list[str]:
        """Ids of the studies that the server has, sorted."""
        return sorted(self._json("GET", "/datastore/", output="all").get("objects", {}))

    def upload(self, image: str, file: str | Path) -> None:
        """Give the server a scan."""
        self._form("PUT", "/datastore/image", {"file": (Path(file).name, Path(file).read_bytes())}, {}, image=image)

    def study(self, image: str) -> dict[str, Any]:
        """Grid, annotated slices, labels and colours, last result of a study."""
        return self._json("GET", "/labelprop/study", image=image)

    def submit(self, image: str, labels: np.ndarray, names: dict[int, str], **params: Any) -> dict[str, Any]:
        """Store what was drawn.

        Args:
            image: id of the study.
            labels: `(i, j, k)` on the study's grid.
            names: by value; those that the labels hold are told, since others may be gone on the server.
            params: of the request, such as `slice_axis`, `reviewed_slices`, `partial`, `annotation_version`.
        """
        drawn = [int(value) for value in np.unique(labels[labels > 0])]
        params["label_info"] = [{"name": names[value], "idx": value} for value in drawn]
        raw = labels.astype("<u2" if max(drawn, default=0) > 255 else np.uint8).tobytes(order="F")
        return self._form("PUT", "/datastore/label", {"label": ("label.bin", raw)}, params, image=image, tag="sparse")

    def train(self, image: str, budget_s: float) -> None:
        """Start learning."""
        self._json("POST", "/train/labelprop", {"image": image, "budget_s": budget_s})

    def progress(self, image: str) -> dict[str, Any]:
        """`status`, `epoch`, `total_epochs`, `seconds_left` of the last learning."""
        return self._json("GET", "/labelprop/progress", image=image)

    def stop(self, image: str = "") -> None:
        """End learning; the best so far is kept. `image` is meant where the server trains several at once."""
        self._json("DELETE", "/train/", image=image)

    def propagate(self, image: str, **options: Any) -> dict[str, Any]:
        """Fill the volume; the labels are then at `voxels`."""
        return self._form("POST", "/infer/labelprop", {}, options, image=image, output="json")

    def voxels(self, image: str, kind: str = "labels") -> np.ndarray:
        """`(i, j, k)`: `labels`, or `uncertainty` from 0 to 255."""
        return self._voxels(image, kind)[0]

    def annotation(self, image: str) -> tuple[np.ndarray, str]:
        """`(i, j, k)`, what was drawn, and its `annotation_version`."""
        return self._voxels(image, "annotation")

    def _voxels(self, image: str, kind: str) -> tuple[np.ndarray, str]:
        with self._open("GET", "/labelprop/voxels", image=image, kind=kind) as answer:
            shape = [int(size) for size in answer.headers["X-Shape"].split(",")]
            kept = np.dtype(answer.headers["X-Dtype"]).newbyteorder("<")
            array = np.frombuffer(answer.read(), kept).reshape(shape, order="F")
            return array, str(answer.headers["X-Annotation-Version"] or "")

    def suggest(self, image: str) -> dict[str, Any]:
        """The slice to annotate next: `slice`, `position_ras`, `reason`, `expected_gain`, `stop`."""
        return self._json("POST", "/activelearning/next_slice", {"image": image})

    def _json(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        content = None if body is None else json.dumps(body).encode()
        with self._open(method, path, content, "application/json", **query) as answer:
            return json.loads(answer.read() or b"{}")

    def _form(self, method: str, path: str, files: dict[str, tuple[str, bytes]], params: Any, **query: str) -> Any:
        content, kind = _multipart(files, {"params": json.dumps(params)})
        with self._open(method, path, content, kind, **query) as answer:
            return json.loads(answer.read() or b"{}")

    def _open(self, method: str, path: str, content: bytes | None = None, kind: str = "", **query: str) -> Any:
        address = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        try:
            request = urllib.request.Request(address, content, self._headers(kind), method=method)
            return urllib.request.urlopen(request, timeout=PATIENCE_S)
        except urllib.error.HTTPError as error:
            raise ServerError(_reason(error)) from error
        except (OSError, ValueError) as error:
            raise ServerError(f"{self.url} does not answer ({getattr(error, 'reason', error)})") from error

    def _headers(self, kind: str) -> dict[str, str]:
        told = {"Content-Type": kind, "Authorization": f"Bearer {self._token}" if self._token else ""}
        return {key: value for key, value in told.items() if value}


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server refuses ({error.code} {error.reason})"


def _multipart(files: dict[str, tuple[str, bytes]], fields: dict[str, str]) -> tuple[bytes, str]:
    """A form's body and its content type."""
    edge = uuid.uuid4().hex
    parts = [(f'name="{key}"', value.encode()) for key, value in fields.items()]
    parts += [(f'name="{key}"; filename="{_quoted(name)}"', content) for key, (name, content) in files.items()]
    body = b"".join(
        f"--{edge}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def _quoted(name: str) -> str:
    return name.replace("\\", "_").replace('"', "_")
