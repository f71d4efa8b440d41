"""Errors of the library and of MONAI Label as HTTP answers: the one place where they are translated."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException
from requests import RequestException

from sliceprop.errors import InputError, MemoryTakenError, SlicePropError, StorageError, TooLargeError

logger = logging.getLogger(__name__)


class NotFoundError(InputError):
    """An image, model, strategy, method, checkpoint or result that does not exist."""


class ConflictError(InputError):
    """What is asked for does not fit what the server holds by now."""


class UnauthorizedError(InputError):
    """The request comes without a token, or with one that is not known."""


class ForbiddenError(InputError):
    """Whoever sends the request, or the page that makes a browser send it, may not do that."""


class TooSlowError(InputError):
    """The request took longer than the server allows."""


class BusyError(InputError):
    """The server does as much as it can; the same request may be served later.

    Args:
        message: for the user.
        retry_after_s: when to try again.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ArchiveError(SlicePropError):
    """The DICOMweb server that holds the scans does not answer, or refuses."""


LONGEST = 2000
"""Characters of a reason: some repeat what the client sent, which may be long."""

RETRY_AFTER_S = 30
"""For work that waits for other work to end, which may take seconds or minutes."""

_STATUS = {
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    TooSlowError: 408,
    ConflictError: 409,
    MemoryTakenError: 429,
    TooLargeError: 413,
    StorageError: 507,
    BusyError: 429,
    ArchiveError: 502,
}


def refusal(error: Exception, reason: str = "") -> JSONResponse:
    """The answer to a request that cannot be served: its kind's status, else 400, and the reason as `detail`."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)
    headers = {}
    if isinstance(error, UnauthorizedError):
        headers = {"WWW-Authenticate": "Bearer"}
    if status == 429:
        headers = {"Retry-After": str(math.ceil(getattr(error, "retry_after_s", RETRY_AFTER_S)))}
    return JSONResponse({"detail": _encodable((reason or str(error))[:LONGEST])}, status_code=status, headers=headers)


def storage_refusal(error: OSError) -> JSONResponse:
    """The answer when a file of the server's own fails, for whatever reason; the log has more of it."""
    logger.error("a file of the server cannot be read or written", exc_info=error)
    return refusal(StorageError(f"a file of the server cannot be read or written ({error.strerror or 'unknown'})"))


def _encodable(text: str) -> str:
    """Text without the half characters that JSON can bring in and UTF-8 cannot take out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def install_error_handlers(api: FastAPI, folder: Path) -> None:
    """Make `api` answer 4xx with the reason where the client is at fault, and say what a folder does not take or give.

    Args:
        api: of MONAI Label.
        folder: of the studies; what lies above is nobody's business, and is not told.
    """
    places = "|".join(re.escape(str(place)) for place in (folder, folder.resolve()))
    above = re.compile(rf"(?:{places}|{re.escape(tempfile.gettempdir())}{os.sep}tmp\w+){os.sep}")

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return refusal(error, above.sub("", str(error)))

    async def refuse_storage(request: Request, error: Any) -> JSONResponse:
        return storage_refusal(error)

    async def refuse_stock(request: Request, error: Any) -> JSONResponse:
        return refusal(NotFoundError(error.msg))

    async def refuse_json(request: Request, error: Exception) -> JSONResponse:
        return refusal(InputError(f"not valid JSON: {error}"))

    async def refuse_parts(request: Request, error: Any) -> JSONResponse:
        """FastAPI's own answer without what the client sent, which may be no text."""
        wrong = [{key: part[key] for key in ("type", "loc", "msg")} for part in error.errors()]
        return JSONResponse({"detail": wrong}, status_code=422)

    async def refuse_archive(request: Request, error: Exception) -> JSONResponse:
        return refusal(ArchiveError(f"the DICOMweb server does not answer ({error})"))

    api.add_exception_handler(RequestException, refuse_archive)
    api.add_exception_handler(OSError, refuse_storage)
    api.add_exception_handler(SlicePropError, refuse)
    api.add_exception_handler(MONAILabelException, refuse_stock)
    api.add_exception_handler(json.JSONDecodeError, refuse_json)
    api.add_exception_handler(RequestValidationError, refuse_parts)
