"""Errors of the library and of MONAI Label as HTTP answers: the one place where they are translated."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException
from requests import RequestException

from sliceprop.errors import InputError, SlicePropError, TooLargeError


class NotFoundError(InputError):
    """An image, model, strategy, method, checkpoint or result that does not exist."""


class ConflictError(InputError):
    """What is asked for does not fit what the server holds by now."""


class ArchiveError(SlicePropError):
    """The DICOMweb server that holds the scans does not answer, or refuses."""


_STATUS = {NotFoundError: 404, ConflictError: 409, TooLargeError: 413, ArchiveError: 502}


def refusal(error: Exception) -> JSONResponse:
    """The answer to a request that cannot be served: 404, 409, 413, 502 or 400, and the reason as `detail`."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)
    return JSONResponse({"detail": str(error)}, status_code=status)


def install_error_handlers(api: FastAPI) -> None:
    """Make `api` answer 4xx with the reason where the client is at fault."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return refusal(error)

    async def refuse_stock(request: Request, error: Any) -> JSONResponse:
        return refusal(NotFoundError(error.msg))

    async def refuse_json(request: Request, error: Exception) -> JSONResponse:
        return refusal(InputError(f"not valid JSON: {error}"))

    async def refuse_archive(request: Request, error: Exception) -> JSONResponse:
        return refusal(ArchiveError(f"the DICOMweb server does not answer ({error})"))

    api.add_exception_handler(RequestException, refuse_archive)
    api.add_exception_handler(SlicePropError, refuse)
    api.add_exception_handler(MONAILabelException, refuse_stock)
    api.add_exception_handler(json.JSONDecodeError, refuse_json)
