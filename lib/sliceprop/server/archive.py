"""The scans of a DICOMweb archive: fetched once and kept with their labels in a folder of this server."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import urllib3
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.utils.others.generic import md5_digest
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from sliceprop import io
from sliceprop.dicom_seg import FIRST_SERIES_NUMBER, write_dicom_seg
from sliceprop.dicom_series import check_series, describe_series, read_series
from sliceprop.errors import FileError, InputError, MemoryTakenError, SlicePropError, StorageError
from sliceprop.files import remove_abandoned
from sliceprop.server.datastore import Studies
from sliceprop.server.errors import ArchiveError, NotFoundError
from sliceprop.server.logs import used_names

logger = logging.getLogger(__name__)

FINAL = "final"
"""Tag of the labels that the archive gets as DICOM SEG; those of other tags stay with this server."""

SEARCH_FILTER = {"Modality": ["CT", "MR"]}
"""Series that are listed unless the operator says otherwise; MONAI Label's default is CT only."""

CONNECT_S, READ_S = 5.0, 60.0
ANSWER_S, LONGEST_SERIES, LONGEST_LIST = 1800.0, 4 << 30, 64 << 20
"""Seconds and bytes for one answer: of a series or a part of it, which is taken as it comes, or of a list."""

LISTED_S = 10.0
"""Seconds for which a list of series is used again: clients ask for it all the time."""

PATIENCE_S = 2.0
"""For the list that another thread asks an archive for; one that hangs must not hold up everybody."""

_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
_NUMBER_OF_INSTANCES = "00201209"


def open_archive(url: str, folder: str | None) -> ArchivedStudies:
    """The archive at an address, with MONAI Label's settings: user, password, prefixes, search filter.

    Args:
        url: of the DICOMweb server.
        folder: for scans and labels; by default one in MONAI Label's cache that belongs to this address.
    """
    session = _session(url)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Impatient(url))
    prefixes = {
        "qido_url_prefix": settings.MONAI_LABEL_QIDO_PREFIX,
        "wado_url_prefix": settings.MONAI_LABEL_WADO_PREFIX,
        "stow_url_prefix": settings.MONAI_LABEL_STOW_PREFIX,
    }
    client = DICOMwebClientX(url=url, session=session, **prefixes)
    client.set_http_retry_params(retry=False)
    chosen = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set
    search = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER if chosen else SEARCH_FILTER
    os.environ["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] = json.dumps(search)  # for processes beside the server
    return ArchivedStudies(client, search, kept_folder(url, folder))


def studies_folder(studies: str, conf: Mapping[str, Any]) -> Path:
    """Where scans and labels of a server lie: the folder that it was given, or the one for its archive.

    Args:
        studies: folder or address of an archive.
        conf: of the app; its `folder` is one for an archive.
    """
    return Path(kept_folder(studies, conf.get("folder")) if is_archive(studies) else studies)


def is_archive(studies: str) -> bool:
    """Whether the studies are at an address."""
    return studies.startswith(("http://", "https://"))


def kept_folder(url: str, folder: str | None) -> str:
    """Where scans and labels of an archive are kept; arguments as those of `open_archive`."""
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or str(Path.home() / ".cache" / "monailabel" / "dicom")
    return folder or str(Path(cache) / md5_digest(url))


def _session(url: str) -> requests.Session:
    """With the operator's credentials."""
    if "googleapis.com" in url:
        from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials

        return create_session_from_gcp_credentials()
    session, user = requests.Session(), settings.MONAI_LABEL_DICOMWEB_USERNAME
    if user and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
        session.auth = (user, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
    return session


class _Impatient(HTTPAdapter):
    """Waits for an archive that does not answer for seconds, not for ever, and takes no more than anybody sends.

    Args:
        url: of the archive; no other server is asked, wherever it sends us.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._server = _server(requests.Request("GET", url).prepare())

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        if _server(request) != self._server:
            raise ArchiveError("the DICOMweb server sends us to another one; give the server's own address")
        timeout = options.get("timeout") or (CONNECT_S, READ_S)
        answer = super().send(request, *args, **{**options, "timeout": timeout})
        longest = LONGEST_SERIES if options.get("stream") else LONGEST_LIST
        answer.raw.stream = partial(_bounded, answer.raw.stream, longest)
        return answer


def _server(request: requests.PreparedRequest) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a request's address."""
    address = urlsplit(request.url or "")
    return address.scheme, address.hostname, address.port or {"http": 80, "https": 443}.get(address.scheme)


def _bounded(stream: Callable[..., Iterator[bytes]], left: int, *args: Any, **options: Any) -> Iterator[bytes]:
    """The body of an answer as it comes.

    Raises:
        HTTPError: if it does not end in time, or is longer than that.
    """
    until = time.monotonic() + ANSWER_S
    for part in stream(*args, **options):
        left -= len(part)
        if left < 0 or time.monotonic() > until:
            raise urllib3.exceptions.HTTPError("the archive's answer does not end")
        yield part


class ArchivedStudies(Studies):
    """Series of an archive as images; their ids are the SeriesInstanceUIDs.

    A series that was opened before stays usable while the archive is away. Labels are NIfTI files of this server; those
    of tag `final` also go to the archive as DICOM SEG, and what becomes of that is kept in the label's info. Each one
    is a series of its own, numbered from `FIRST_SERIES_NUMBER` on; what is there already is never sent again, and
    nothing is ever replaced or deleted in the archive.

    Args:
        client: of the archive.
        search_filter: attributes of the series to list; a list of values means any of them.
        folder: made if absent.
    """

    def __init__(self, client: DICOMwebClient, search_filter: Mapping[str, Any], folder: str) -> None:
        self._client, self._filter, self._folder = client, search_filter, Path(folder).resolve()
        self._listed: tuple[float, list[str]] = (-LISTED_S, [])
        self._listing, self._fetching, self._locks = Lock(), Lock(), dict[str, RLock]()
        super().__init__(str(self._folder), watch=False)

    def name(self) -> str:
        """The archive's address."""
        return str(self._client.base_url)

    def list_images(self) -> list[str]:
        """Ids of the series that pass the filter; while the archive is away, of those that were opened before.

        While somebody else asks the archive, and that takes long, it is the list from before.
        """
        if not self._listing.acquire(timeout=PATIENCE_S):
            return list(self._listed[1]) or sorted(self._datastore.objects)
        try:
            if time.monotonic() - self._listed[0] >= LISTED_S:
                listed = self._list()
                self._listed = time.monotonic(), listed
            return list(self._listed[1])
        finally:
            self._listing.release()

    def json(self) -> dict[str, Any]:
        """What is known of each series, also of those that nobody opened yet."""
        known: dict[str, Any] = super().json()
        new = {"image": {"ext": "", "info": {}}, "labels": {}}
        known["objects"] = dict.fromkeys(self.list_images(), new) | known["objects"]
        return known

    def _list(self) -> list[str]:
        try:
            return sorted(self._search())
        except ArchiveError:
            logger.exception("series that were opened before are listed only")
            return sorted(self._datastore.objects)

    def refresh(self) -> None:
        """Ask the archive anew when a list is wanted next."""
        self._listed = (-LISTED_S, self._listed[1])

    def has_image(self, image_id: str) -> bool:
        """Whether the series was opened before, or is in the archive and passes the filter.

        Raises:
            ArchiveError: if the archive must be asked and does not answer.
        """
        found = image_id in self._datastore.objects or (
            bool(_UID.fullmatch(image_id)) and image_id in self._search(SeriesInstanceUID=image_id)
        )
        if found:
            used_names.add(image_id)
        return found

    def get_image_uri(self, image_id: str) -> str:
        """The file of a scan, after fetching and converting the series the first time.

        Raises:
            ArchiveError: if the archive does not answer.
            InputError: or a subclass, for a series that is not a volume.
        """
        scan = self._folder / f"{image_id}.nii.gz"
        with self._locks.setdefault(image_id, RLock()):
            if not scan.is_file() or image_id not in self._datastore.objects:
                self._fetch(image_id, scan)
            elif "SeriesInstanceUID" not in self._datastore.objects[image_id].image.info and _UID.fullmatch(image_id):
                self._describe(image_id)
        return str(scan)

    def _describe(self, image_id: str) -> None:
        """Note what a series says of itself, after the list of images was made anew from the files in the folder."""
        info: dict[str, Any] = {"SeriesInstanceUID": image_id}
        try:
            info |= describe_series(read_series(self._folder / image_id))
        except SlicePropError:
            logger.exception("of %s only the scan is there, and not the files that it was made from", image_id)
        try:
            self.update_image_info(image_id, info)
        except FileError:
            logger.exception("what %s is cannot be noted", image_id)

    def renew(self, image_id: str) -> None:
        """Fetch a series anew that has grown since, such as one that was opened while it was still being stored.

        One with labels of this server stays as it is: they belong to the slices that were there; the caller looks for
        versions. What was there also stays if anything goes wrong.

        Raises:
            ArchiveError: if the archive stops answering in the middle.
            InputError: or a subclass, if the series is not a volume any more, or not yet; or the folder is full.
        """
        with self._locks.setdefault(image_id, RLock()):
            entry, series = self._datastore.objects.get(image_id), self._folder / image_id
            if entry is None or entry.labels or self._count(image_id) <= len(list(series.glob("*"))):
                return
            self._fetch(image_id, self._folder / f"{image_id}.nii.gz", anew=True)

    def read(
        self, path: str, query: str, encodings: str = "identity"
    ) -> tuple[int, Mapping[str, str], Iterator[bytes]]:
        """What the archive answers to GET: status, headers, and the body as it comes, in parts.

        Args:
            path: below the archive's address.
            query: of the request, without the question mark.
            encodings: in which the body may come, as `Accept-Encoding` lists them.

        Raises:
            ArchiveError: if it does not answer, or stops in the middle.
        """
        with self._asking():
            url = f"{self.name()}/{path}" + (f"?{query}" if query else "")
            response = self._client._session.get(url, headers={"Accept-Encoding": encodings}, stream=True)
        return response.status_code, response.headers, self._parts(response)

    def _parts(self, response: requests.Response) -> Iterator[bytes]:
        with self._asking(), response:
            yield from response.raw.stream(decode_content=False)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the series with a final label of this server."""
        return [image for image, entry in self._datastore.objects.items() if entry.labels.get(label_tag or FINAL)]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError("the images are those of the DICOMweb archive; store the series there")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label file; one of tag `final` goes to the archive too, if that is possible.

        The info of a `final` label says so: `dicom_seg`, and in a `sentence` where it is or why it is not there;
        `dicom_seg_series` is the last series that was sent.
        """
        if label_tag != FINAL:
            return super().save_label(image_id, label_filename, label_tag, label_info)
        labels, before = Path(label_filename), self.get_label_info(image_id, FINAL)
        sent = before.get("dicom_seg_series") or {}
        unchanged = bool(before.get("dicom_seg")) and self._holds(image_id, labels, label_info)
        super().save_label(image_id, label_filename, FINAL, {**label_info, "dicom_seg_series": sent})
        told = self._export(image_id, labels, label_info, sent, unchanged=unchanged)
        return super().save_label(image_id, label_filename, FINAL, {**label_info, **told})

    def _holds(self, image_id: str, labels: Path, info: Mapping[str, Any]) -> bool:
        """Whether the final label has these voxels, names and colours already."""
        kept, before = self.label_file(image_id, FINAL), self.get_label_info(image_id, FINAL)
        same_names = before.get("label_info") == info.get("label_info")
        return bool(kept and same_names and np.array_equal(io.read_image(kept).array, io.read_image(labels).array))

    def _export(
        self, image_id: str, labels: Path, info: Mapping[str, Any], sent: Mapping[str, Any], *, unchanged: bool
    ) -> dict[str, Any]:
        """What the info of a final label says about the archive, after sending it there if it is not there yet.

        Args:
            image_id: of the scan.
            labels: label file.
            info: of the label.
            sent: the series that was sent last, empty before the first one.
            unchanged: whether that series holds just this label.
        """
        try:
            if unchanged and self._search(filtered=False, SeriesInstanceUID=str(sent["uid"])):
                told = f"Nothing has changed since it was saved: {_named(sent)} in the archive {self.name()}."
                return {"dicom_seg": True, "dicom_seg_series": sent, "sentence": told}
            sent = self._send(image_id, labels, info, int(sent.get("number", FIRST_SERIES_NUMBER - 1)) + 1)
        except SlicePropError as error:
            logger.exception("the final label of %s is not in the archive", image_id)
            kept = f"Saved on this server as NIfTI, but not in the archive: {error}."
            return {"dicom_seg": False, "dicom_seg_series": sent, "sentence": kept}
        told = f"Saved, and in the archive {self.name()} as DICOM SEG: {_named(sent)}."
        return {"dicom_seg": True, "dicom_seg_series": sent, "sentence": told}

    def _send(self, image_id: str, labels: Path, info: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Send a label as a series with this number; its `uid`, `number` and `description`."""
        from pydicom import dcmread

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "label.dcm"
            write_dicom_seg(labels, self._series(image_id), info.get("label_info", ()), file, series_number=number)
            segmentation = dcmread(file)
            with self._asking():
                answer = self._client.store_instances([segmentation])
        if answer.get("FailedSOPSequence"):
            raise ArchiveError("the archive refuses the DICOM SEG")
        about = {"uid": segmentation.SeriesInstanceUID, "description": segmentation.SeriesDescription}
        return {"number": number, **{key: str(value) for key, value in about.items()}}

    def _fetch(self, image_id: str, scan: Path, *, anew: bool = False) -> None:
        """Make the scan from the series; files of both that were there stay until the new ones are complete."""
        remove_abandoned(self._folder)
        series = self._folder / image_id
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=io.UNFINISHED) as folder:
            received = self._download(image_id, Path(folder)) if anew or not _holds_files(series) else series
            try:
                files = read_series(received)
                check_series(files)
                image = io.read_image(received)
            except SlicePropError as error:
                if received == series and not isinstance(error, MemoryTakenError):
                    series.rename(Path(folder) / "former")  # more slices may be on their way to the archive
                raise
            written = Path(folder) / scan.name
            io.write_image(written, image.array, image, dtype=str(image.array.dtype))
            self._note(image_id, {"ts": int(time.time()), "name": scan.name, **describe_series(files)})
            scan.unlink(missing_ok=True)  # never beside another series, whenever this ends
            if received != series:
                _put(received, series)
            written.replace(scan)
            io.sync(self._folder)

    def _note(self, image_id: str, info: dict[str, Any]) -> None:
        """List a series that has no labels."""
        try:
            with self._entries() as entries:
                entries[image_id] = ImageLabelModel(image=DataModel(info=info, ext=".nii.gz"))
        except FileError:
            self._list_state = None  # what the file says counts
            raise

    def _series(self, image_id: str) -> Path:
        """The folder with the DICOM files of a series, received as a whole.

        Raises:
            ArchiveError: if the archive does not answer.
            NotFoundError: if it has no such series.
            StorageError: if the folder is full.
        """
        target = self._folder / image_id
        if not _holds_files(target):
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=io.UNFINISHED) as folder:
                _put(self._download(image_id, Path(folder)), target)
        return target

    def _download(self, image_id: str, folder: Path) -> Path:
        """A new folder in this one with the files of a series as the archive has them; may raise as `_series`."""
        study = self._search(SeriesInstanceUID=image_id).get(image_id)
        if study is None:
            raise NotFoundError(f"the archive has no series {image_id!r}")
        files = folder / "series"
        files.mkdir()
        with self._asking():
            for number, instance in enumerate(self._client.iter_series(study, image_id)):
                if str(instance.get("SeriesInstanceUID")) != image_id:
                    raise ArchiveError(f"the DICOMweb server {self.name()} sends files of another series")
                file = files / f"{number:06}.dcm"  # never a name that the archive gives
                try:
                    instance.save_as(file)
                except OSError as error:
                    raise StorageError(f"{self._folder}: cannot keep the series ({error.strerror or error})") from error
        return files

    def _count(self, image_id: str) -> int:
        """How many files of a series the archive has; 0 if it does not say."""
        try:
            with self._asking():
                wanted = {"SeriesInstanceUID": image_id}
                found = self._client.search_for_series(search_filters=wanted, fields=[_NUMBER_OF_INSTANCES])
                return max((int(_value(one, _NUMBER_OF_INSTANCES)) for one in found), default=0)
        except ArchiveError:
            logger.info("whether %s has grown is not known", image_id)
            return 0

    def _search(self, *, filtered: bool = True, **more: str) -> dict[str, str]:
        """`{SeriesInstanceUID: StudyInstanceUID}` of the series that pass the filter.

        Args:
            filtered: whether the operator's filter counts.
            more: attributes that the series must have.

        Raises:
            ArchiveError: if the archive does not answer.
        """
        search = self._filter if filtered else {}
        choices = [value if isinstance(value, list) else [value] for value in search.values()]
        found = dict[str, str]()
        with self._asking():
            for values in product(*choices):
                wanted = {**dict(zip(search, values, strict=True)), **more}
                answer = self._client.search_for_series(search_filters=wanted, get_remaining=True)
                found |= {_value(series, "0020000E"): _value(series, "0020000D") for series in answer}
        return {series: study for series, study in found.items() if _UID.fullmatch(series)}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What goes wrong between this server and the archive, in one sentence."""
        try:
            yield
        except (StorageError, ArchiveError):
            raise
        except requests.HTTPError as error:
            reason = str(error).partition(" for url")[0]
            raise ArchiveError(f"the DICOMweb server {self.name()} refuses the request ({reason})") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ArchiveError(f"the DICOMweb server {self.name()} does not answer; is it running?") from error
        except (InvalidDicomError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ArchiveError(f"what the DICOMweb server {self.name()} sends is not DICOM") from error


def _value(entry: Mapping[str, Any], tag: str) -> str:
    return str(entry[tag]["Value"][0])


def _named(series: Mapping[str, Any]) -> str:
    return f"series {series['number']}, {series['description']}"


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _put(received: Path, series: Path) -> None:
    """Move a folder into the place of another one, which goes beside where it was."""
    if series.is_dir():
        series.rename(received.with_name("former"))
    received.replace(series)
