"""Speaks HTTP to a server of `apps/labelprop`: what a front end asks for, with typed errors; no Qt, no napari.

Arrays are `(i, j, k)` in the axis order of the study's file, as everywhere in `io`; label values are the server's
indices.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from requests.auth import AuthBase

from sliceprop import io
from sliceprop.errors import FileError, InputError

MODEL = "labelprop"
KINDS = ("labels", "from_lower", "from_upper", "uncertainty")

CONNECT_S, ANSWER_S = 4.0, 600.0
"""Seconds to wait for a connection, and for an answer, which a propagation of a large study may need."""


class ServerError(InputError):
    """Something about a server; the message says what to do."""


class UnreachableError(ServerError):
    """Nobody answers at the address, or the connection broke."""


class WrongServerError(ServerError):
    """Somebody answers, but it is no server of this app, or one of another version."""


class RefusedError(ServerError):
    """The server refused a request and said why.

    Attributes:
        status: of HTTP, 400 to 599.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Bearer(AuthBase):
    """Says who asks; requests drops it where a server sends the client to another one."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Client:
    """One server.

    Args:
        address: `http://127.0.0.1:8000`; the scheme may be left out.
        token: for a server that asks who is there, as `sliceprop token` made it; empty for none.

    Raises:
        ServerError: not an address, or not a token.
    """

    def __init__(self, address: str, token: str = "") -> None:
        text = address.strip().rstrip("/")
        if not text or " " in text:
            raise ServerError(f"{address!r} is not an address; give one like http://127.0.0.1:8000")
        self.address = text if "://" in text else f"http://{text}"
        self._session = requests.Session()
        if token := token.strip():
            if not token.isascii() or not token.isprintable():
                raise ServerError("this is not a token; copy it as the server's operator gave it")
            self._session.auth = _Bearer(token)

    def check(self) -> None:
        """Make sure that this is a server of the app.

        Raises:
            UnreachableError: nobody answers.
            WrongServerError: somebody else does.
            RefusedError: it wants to know who asks, or does not let this one in.
        """
        try:
            info = self._json("GET", "/info/")
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            raise WrongServerError(self._stranger()) from error
        if not isinstance(info, dict) or MODEL not in info.get("models", {}):
            raise WrongServerError(self._stranger())

    def studies(self) -> list[str]:
        """Ids of all images, ascending."""
        return sorted(self._json("GET", "/datastore/", params={"output": "all"}).get("objects", {}))

    def study(self, image: str) -> dict[str, Any]:
        """`GET /labelprop/study`: shape, slice axis, annotated slices, label names and colours, last result."""
        return dict(self._json("GET", "/labelprop/study", params={"image": image}))

    def download_image(self, image: str) -> io.Image:
        """The scan of a study."""
        return self._volume("/datastore/image", {"image": image})

    def upload_image(self, image: str, scan: io.Image) -> None:
        """Add a study to the server.

        Args:
            image: its id.
            scan: with its affine.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{image}.nii.gz"
            io.write_image(file, scan.array, scan)
            with file.open("rb") as content:
                self._json("PUT", "/datastore/image", params={"image": image}, files={"file": (file.name, content)})

    def voxels(self, image: str, kind: str) -> NDArray[Any]:
        """`labels`, `annotation` or `scribbles` of a study as label indices, `uncertainty` as 0 to 255."""
        answer = self._request("GET", "/labelprop/voxels", params={"image": image, "kind": kind})
        shape = [int(size) for size in answer.headers["X-Shape"].split(",")]
        return np.frombuffer(answer.content, answer.headers["X-Dtype"]).reshape(shape, order="F").copy()

    def result(self, image: str, kind: str) -> NDArray[Any]:
        """One of `KINDS` of the last propagation."""
        return self._volume("/labelprop/result", {"image": image, "kind": kind}).array

    def submit(
        self, image: str, labels: NDArray[Any], names: Mapping[int, str], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Store the user's annotation.

        Args:
            image: id of the study.
            labels: `(i, j, k)`, values of the client.
            names: name of each value.
            options: further `params`, see `apps/labelprop/README.md`.
        """
        query = {"image": image, "tag": "sparse"}
        return self._send("/datastore/label", query, labels, names, options)

    def submit_scribbles(
        self, image: str, marks: NDArray[Any], names: Mapping[int, str], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Store marks in any plane, 255 for background; those that were there before go. See `submit`."""
        return self._send("/labelprop/scribbles", {"image": image}, marks, names, options)

    def train(self, image: str, options: Mapping[str, Any]) -> None:
        """Start to learn on a study; `progress` tells how far it is."""
        self._json("POST", f"/train/{MODEL}", json={"image": image, **options})

    def progress(self, image: str = "") -> dict[str, Any]:
        """`status`, `epoch`, `total_epochs`, `best_metric`, `seconds`, `seconds_left`, `image` of the last training.

        Args:
            image: the study that is meant, where the server trains several at once.
        """
        return dict(self._json("GET", "/labelprop/progress", params={"image": image}))

    def stop(self, image: str = "") -> None:
        """End the training; the best model so far stays. None running is fine.

        Args:
            image: the study that is meant, where the server trains several at once.
        """
        try:
            self._request("DELETE", "/train/", params={"image": image})
        except RefusedError as error:
            if error.status != 404:
                raise

    def propagate(self, image: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the volume; the report, while the volumes stay on the server (`result`)."""
        files = {"params": (None, json.dumps(dict(options)))}
        return dict(self._json("POST", f"/infer/{MODEL}", params={"image": image, "output": "json"}, files=files))

    def suggest(self, image: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The slice to annotate next."""
        return dict(self._json("POST", "/activelearning/next_slice", json={"image": image, **options}))

    def checkpoints(self) -> list[str]:
        """Ids of the checkpoints on the server."""
        return [entry["id"] for entry in self._json("GET", "/labelprop/checkpoints")]

    def download_checkpoint(self, checkpoint: str, file: Path) -> None:
        """Write a checkpoint of the server to a file."""
        content = self._request("GET", f"/labelprop/checkpoints/{checkpoint}").content
        io.check_folder(file)
        io.write_atomically(file, lambda temporary: temporary.write_bytes(content))

    def upload_checkpoint(self, checkpoint: str, file: Path) -> None:
        """Store a checkpoint on the server under an id."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise FileError(f"{file}: cannot be read ({error.strerror})") from error
        self._request("PUT", f"/labelprop/checkpoints/{checkpoint}", data=content)

    def _send(
        self,
        path: str,
        query: Mapping[str, str],
        labels: NDArray[Any],
        names: Mapping[int, str],
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        compact = io.compact_labels(labels)
        data = compact.astype(compact.dtype.newbyteorder("<")).tobytes(order="F")
        info = [{"name": name, "idx": value} for value, name in names.items()]
        params = json.dumps({"label_info": info, **options})
        files = {"label": ("label.bin", data)}
        return dict(self._json("PUT", path, params=query, files=files, data={"params": params}))

    def _volume(self, path: str, query: Mapping[str, str]) -> io.Image:
        answer = self._request("GET", path, params=query)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"volume{_suffix(answer)}"
            file.write_bytes(answer.content)
            return io.read_image(file)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        answer = self._request(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            raise WrongServerError(self._stranger()) from error

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, self.address + path, timeout=(CONNECT_S, ANSWER_S), **options)
        except requests.Timeout as error:
            raise UnreachableError(f"the server {self.address} does not answer in time; try again") from error
        except requests.exceptions.SSLError as error:
            raise UnreachableError(
                f"the server {self.address} has a certificate that is not trusted here; "
                "name its file in the variable REQUESTS_CA_BUNDLE"
            ) from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"the server {self.address} does not answer; check the address, and that it is running"
            ) from error
        if not answer.ok:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: requests.Response) -> ServerError:
        try:
            detail = answer.json().get("detail")
        except (ValueError, AttributeError):
            detail = None
        if answer.status_code in (404, 405) and detail in (None, "Not Found", "Method Not Allowed"):
            return WrongServerError(self._stranger())
        if answer.status_code == 401:
            return RefusedError(401, f"the server {self.address} asks who you are; enter your token and connect again")
        if answer.status_code == 403:
            return RefusedError(403, str(detail or f"the server {self.address} does not allow you to do this"))
        return RefusedError(answer.status_code, str(detail or f"the server failed ({answer.status_code}); see its log"))

    def _stranger(self) -> str:
        return (
            f"{self.address} is not a server of the MONAI Label app labelprop, or one of another version; "
            "start it with `sliceprop serve`, of the version that is installed here"
        )


def _suffix(answer: requests.Response) -> str:
    """Format of a volume that was sent: the ending of its name."""
    name = answer.headers.get("Content-Disposition", "").rstrip('"').lower()
    return next((suffix for suffix in sorted(io.SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), ".nii.gz")
