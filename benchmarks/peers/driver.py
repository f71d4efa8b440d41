"""Runs one peer in its own Python: `driver.py PEER_FOLDER INPUT.npz OUTPUT.npz SETTINGS_JSON`.

Only numpy is needed beside what the peer needs. A peer is a folder with `requirements.txt`, `peer.txt` (the package
itself, installed with --no-deps) and `peer.py`, which has

- `PACKAGES`: distributions whose versions are recorded,
- `SETTINGS`: names and defaults of what a method's name may set,
- `fill(scan, labels, annotated, spacing, **settings)`: `scan` is `(S, H, W)` float32, intensities as in the file;
  `labels` is `(S, H, W)` int32, 0 on every slice that is not annotated; `annotated` lists the annotated slices;
  `spacing` is mm along `(S, H, W)`.

It gives the filled labels `(S, H, W)` and a dictionary: `train_s`, `propagate_s`, `device`. What it cannot do
here it says with `SystemExit("cannot run: ...")`.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np


def main():
    """Read the input, let the peer work, write labels, seconds and versions."""
    folder, source, target = map(Path, sys.argv[1:4])
    peer = _load(folder / "peer.py")
    settings = _settings(peer.SETTINGS, json.loads(sys.argv[4]))
    with np.load(source) as given:
        arrays = {name: given[name] for name in ("scan", "labels", "annotated", "spacing")}
    try:
        labels, measured = peer.fill(
            arrays["scan"], arrays["labels"], arrays["annotated"].tolist(), arrays["spacing"].tolist(), **settings
        )
    except ImportError as error:
        raise SystemExit(f"cannot run: {error}; install {folder.name}/requirements.txt into its Python") from error
    versions = f"python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in peer.PACKAGES)
    np.savez_compressed(
        target, labels=labels, measured=json.dumps({**measured, "settings": settings, "versions": versions})
    )


def _settings(defaults, given):
    """The defaults with what was given as text."""
    unknown = given.keys() - defaults.keys()
    if unknown:
        raise SystemExit(f"no setting {', '.join(sorted(unknown))}; there are {', '.join(defaults)}")
    return {name: type(default)(given.get(name, default)) for name, default in defaults.items()}


def _load(path):
    spec = importlib.util.spec_from_file_location("peer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its subfolders are not packages
    main()
