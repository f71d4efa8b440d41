"""The labelprop app for MONAI Label: all of it lives in `sliceprop.server`; the loader looks for the class here."""

from sliceprop.server.app import LabelPropApp

__all__ = ["LabelPropApp"]
