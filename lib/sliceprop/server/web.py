"""What all routes share: the app, who may do what, and uploads on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Form, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from sliceprop.server.app import LabelPropApp
from sliceprop.server.guard import plain_filename

Reader = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Annotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Admin = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
Params = Annotated[str, Form()]


def running_app() -> LabelPropApp:
    """The app of this server."""
    app: LabelPropApp = app_instance()
    return app


@contextmanager
def saved(upload: UploadFile | None) -> Iterator[Path | None]:
    """The uploaded file on disk, under its own name, for the length of a request."""
    if upload is None:
        yield None
        return
    name = plain_filename(upload.filename) or "upload"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        with file.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        yield file
