"""The layers of ARCHITECTURE: imports point downwards only, and each heavy dependency has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib" / "sliceprop"

LAYERS: tuple[set[str], ...] = (
    {"errors"},
    {"config", "memory", "tokens"},
    {"volume", "labels", "roi", "hashing", "pipes", "dicom_series", "stored_voxels"},
    {"engine"},
    {"io"},
    {
        "arrays",
        "audit",
        "checkpoint",
        "dicom",
        "dicom_seg",
        "files",
        "overlay",
        "phantom",
        "pretrained",
        "segments",
        "suggestion",
        "tools",
        "versions",
        "zarr_io",
    },
    {"meshes", "export", "erasure", "warm_start"},
    {"study"},
    {"manifest"},
    {"cohort"},
    {"dataset_export", "large"},
    {"api"},
)
FRONT_ENDS: tuple[set[str], ...] = (
    {
        "cli",
        "arguments",
        "bars",
        "common_arguments",
        "serve",
        "orthanc",
        "tool_commands",
        "study_commands",
        "cohort_commands",
    },
    {"server"},
    {"napari_plugin", "client"},
)

HOMES = {
    "monailabel": {"server"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "dicomweb_client": {"server"},
    "requests": {"server", "client"},
    "torch": {"engine", "checkpoint", "manifest", "pretrained", "study", "tools", "cohort", "large"},
    "sklearn": {"engine"},
    "monai": {"engine", "tools"},
    "ignite": {"engine", "cohort"},
    "segmentation_models_pytorch": {"engine"},
    "argparse": {
        "arguments",
        "common_arguments",
        "cli",
        "engine",
        "tool_commands",
        "study_commands",
        "cohort_commands",
    },
    "tqdm": {"bars"},
    "matplotlib": {"overlay"},
    "dask": {"cohort"},
    "distributed": {"cohort"},
    "dask_jobqueue": {"cohort"},
    "jinja2": {"cohort"},
    "zarr": {"zarr_io"},
    "pydicom": {"dicom", "dicom_series", "server"},
    "pydantic": {"manifest"},
    "nibabel": {"io", "overlay"},
    "SimpleITK": {"io", "export", "segments", "tools"},
    "itk": {"engine", "tools"},
    "skimage": {"meshes", "tools"},
    "qtpy": {"napari_plugin"},
    "napari": {"napari_plugin"},
}
"""Packages that only the named parts may import."""

PICKLING = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "multiprocessing"}
)
"""Packages that make objects, and with them programs, of bytes; `multiprocessing` does it in its pipes."""

EVALUATING = frozenset({"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.save"})
"""Calls that run text, or write pickles."""

SAFE = {
    "np.load": {"allow_pickle": "False"},
    "np.save": {"allow_pickle": "False"},
    "np.lib.format.read_array": {"allow_pickle": "False"},
    "torch.load": {"weights_only": "True"},
}
"""Calls that unpickle unless they are told not to."""

TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
"""Parsed before there are other threads, which Python 3.11 cannot bear."""

FILES = list(TREES)


def part(file: Path) -> str:
    """The top-level module or subpackage that a file belongs to; the package's own `__init__` counts as `api`."""
    name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "api" if name == "__init__" else name


def imported(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, at any depth."""
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(name: str) -> set[str]:
    """The parts of the package that part `name` may import."""
    for depth, layer in enumerate(LAYERS):
        if name in layer:
            return set().union(*LAYERS[: depth + 1])
    for group in FRONT_ENDS:
        if name in group:
            return set().union(*LAYERS, group)
    raise AssertionError(f"{name} has no place in LAYERS or FRONT_ENDS of this test; give it one")


def inner(name: str) -> str | None:
    """`sliceprop.engine.flow` to `engine`; None for other packages and for names of the package itself."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    known = (PACKAGE / f"{first}.py").is_file() or (PACKAGE / first).is_dir()
    return first if package == "sliceprop" and first and known else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    used = {other for name in imported(file) if (other := inner(name))}
    assert used <= allowed(part(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages_stay_at_home(file: Path) -> None:
    packages = {name.partition(".")[0] for name in imported(file)}
    strangers = {name for name in packages & HOMES.keys() if part(file) not in HOMES[name]}
    assert not strangers
    assert not packages & {"lib", "apps", "torchvision", "sam2"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_evaluated(file: Path) -> None:
    """Neither what comes from files and clients, nor what our own processes tell each other."""
    assert not {name.partition(".")[0] for name in imported(file)} & PICKLING
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("numpy.", "np.")
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in EVALUATING
            assert SAFE.get(called, {}).items() <= options.items(), called
            assert options.get("shell", "False") == "False", called


def test_rules_name_only_what_exists_or_is_planned() -> None:
    present = {part(file) for file in FILES}
    assert present - {"cohort", "napari_plugin"} <= set().union(*LAYERS, *FRONT_ENDS)


def test_importing_the_package_is_cheap() -> None:
    """Neither the package nor the parser of the command line loads anything heavy."""
    heavy = "{'numpy', 'torch', 'nibabel', 'SimpleITK', 'monailabel'}"
    code = f"import sys, sliceprop.cli; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_main_is_import_safe() -> None:
    code = f"import runpy, sys; runpy.run_path({str(ROOT / 'main.py')!r}); sys.exit('sliceprop' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_app_defines_no_class() -> None:
    """MONAI Label runs the app's main.py as a module that cannot be imported again, so nothing in it can be pickled."""
    body = ast.parse((ROOT / "apps" / "labelprop" / "main.py").read_text(encoding="utf-8")).body
    assert not [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.ClassDef)]
