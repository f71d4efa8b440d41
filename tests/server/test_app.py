import pytest

pytest.importorskip("monailabel")

from sliceprop.errors import InputError
from sliceprop.server.app import LabelPropApp


def test_the_app_does_not_start_with_a_prefix_that_would_hide_the_role(tmp_path, monkeypatch):
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_API_STR", "/api")
    with pytest.raises(InputError, match="MONAI_LABEL_API_STR"):
        LabelPropApp(str(tmp_path), str(tmp_path / "studies"), {})
