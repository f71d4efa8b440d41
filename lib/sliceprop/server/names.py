"""Names of the structures: the app's label indices are contiguous from 1, belong to a name and never change."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock

from sliceprop.config import BACKGROUND_SCRIBBLE
from sliceprop.errors import FileError, InputError, SlicePropError
from sliceprop.files import read_table, write_table
from sliceprop.hashing import file_state
from sliceprop.io import make_folder
from sliceprop.server.guard import parse_json

logger = logging.getLogger(__name__)

BACKGROUND = "background"
FOREGROUND_SCRIBBLES, BACKGROUND_SCRIBBLES = "foreground_scribbles", "background_scribbles"
"""Segments in which 3D Slicer's Scribbles tab keeps its marks."""

NOT_STRUCTURES = frozenset({BACKGROUND, FOREGROUND_SCRIBBLES, BACKGROUND_SCRIBBLES})
"""Names that mean something else than a structure."""

MAX_LABELS, MAX_LABEL_NAME, MAX_RENAMED = 1000, 200, 5000
"""Labels of one server, characters of a label's name, and former names that are remembered."""

_NO_LABEL = f"unnamed_{BACKGROUND_SCRIBBLE}"
"""Takes the place of the label whose scribbles would mean background; labels that have that index already keep it."""


def parse_names(value: str | Sequence[str] | Mapping[str, int]) -> list[str]:
    """Names in the order of their indices.

    Args:
        value: a list, `{name: number}` (sorted by number), or text: either of them as JSON, or separated by commas.

    Raises:
        InputError: if there is no name, a name is empty, doubled or not text, or a number is none.
    """
    if isinstance(value, str):
        text = value.strip()
        value = parse_json(text) if text[:1] in ("[", "{") else [name.strip() for name in text.split(",")]
    if isinstance(value, Mapping) and not all(isinstance(number, int | float) for number in value.values()):
        raise InputError("the labels must be names with their numbers")
    names = sorted(value, key=value.__getitem__) if isinstance(value, Mapping) else list(value)
    names = [name for name in names if name != BACKGROUND]
    check_names(names)
    if not names:
        raise InputError("the configured list of labels is empty")
    return names


def configured_names(conf: Mapping[str, str], folder: Path) -> list[str] | None:
    """Names from `--conf labels`, else from `labels.json` in the studies folder, else None.

    Raises:
        InputError: if what is there is not a list of names.
    """
    file = folder / "labels.json"
    text = conf.get("labels") or (file.read_text(encoding="utf-8") if file.is_file() else None)
    try:
        return parse_names(text) if text else None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"labels must be names separated by commas, a JSON list or {{name: number}} ({error})"
        ) from error


def names_by_value(present: Iterable[int], label_info: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Name of each label value that a client's file holds.

    `idx` (or `id`) is the value in the file for clients that write their segment numbers, but 3D Slicer counts skipped
    segments in it and numbers the file's values by position. So `idx` counts if it explains every value present, else
    the position in the list does. Values of one name are one label: 3D Slicer puts a result into segments of its own
    beside those that the user made.

    Raises:
        InputError: if a value has no name, or a name is empty or not text.
    """
    values = set(present)
    names = [entry.get("name") for entry in label_info]
    check_names([name for number, name in enumerate(names) if name not in names[:number]])
    by_idx = {
        _whole_number(entry.get("idx", entry.get("id"))): name for entry, name in zip(label_info, names, strict=True)
    }
    by_position = dict(enumerate(names, start=1))
    chosen = by_idx if values <= by_idx.keys() else by_position
    nameless = sorted(values - chosen.keys())
    if nameless:
        raise InputError(f"label_info names {len(names)} labels, but the file also holds the values {nameless}")
    return {value: str(chosen[value]) for value in sorted(values)}


def _whole_number(value: Any) -> int | None:
    return int(value) if str(value).isdecimal() else None


def check_names(names: Sequence[Any]) -> None:
    """Refuse names that cannot tell labels apart.

    Raises:
        InputError: if one is empty, doubled or not text.
    """
    if len(names) > MAX_LABELS:
        raise InputError(f"{len(names)} labels are too many, at most {MAX_LABELS} are allowed")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"a label's name must be text, not {name!r}")
        if len(name) > MAX_LABEL_NAME or not name.isprintable():
            raise InputError(f"a label's name has at most {MAX_LABEL_NAME} printable characters, not {name[:40]!r}...")
        if names.count(name) > 1:
            raise InputError(f"the label {name!r} is named twice; rename one of them")


def check_number(names: Sequence[str], before: Sequence[str]) -> None:
    """Refuse a table with too many labels; one that has more already may stay as it is.

    Raises:
        InputError: if it is longer than `MAX_LABELS`, and than it was.
    """
    if len(names) > max(MAX_LABELS, len(before)):
        raise InputError(f"{len(names)} labels would be too many, at most {MAX_LABELS} are allowed")


def extended(names: Sequence[str], new: Iterable[str]) -> list[str]:
    """Names with new ones behind them, none of which gets the index `BACKGROUND_SCRIBBLE`."""
    longer = list(names)
    for name in new:
        longer += [_NO_LABEL, name] if len(longer) == BACKGROUND_SCRIBBLE - 1 else [name]
    return longer


def recorded_names(
    recorded: Iterable[Sequence[Mapping[str, Any]]], renamed: Mapping[str, str] | None = None
) -> dict[int, str]:
    """What label indices were called last, to make a lost table anew.

    Args:
        recorded: lists of `name` and `idx`, the newest first.
        renamed: `{former name: name}`; a name that nothing else has takes the place of a former one.

    Returns:
        `{index: name}`; no name is there twice.
    """
    found, renamed = dict[int, str](), renamed or {}
    for entry in (entry for label_info in recorded for entry in label_info):
        index, name = _whole_number(entry.get("idx")), entry.get("name")
        if index and index not in found and isinstance(name, str):
            taken = found.values()
            if (free := name if name not in taken else renamed.get(name)) and free not in taken:
                found[index] = free
    for index, name in found.items():
        if renamed.get(name, name) not in found.values():
            found[index] = renamed[name]
    return found


class _TableLock:
    """Held by one thread of one process at a time; where nothing can be written, by one thread of this one.

    Args:
        table: file that it is for.
    """

    def __init__(self, table: Path) -> None:
        self._threads, self._processes = Lock(), FileLock(table.with_suffix(".lock"), thread_local=False)

    def __enter__(self) -> None:
        self._threads.acquire()
        with suppress(OSError, FileError):
            make_folder(Path(self._processes.lock_file).parent)
            self._processes.acquire()

    def __exit__(self, *_: object) -> None:
        try:
            self._processes.release()
        finally:
            self._threads.release()


class LabelNames:
    """The table of names of one server.

    A configured name that the table knows keeps its index, whatever the order of the configuration; the others take
    the indices that are free. Names of the table that are not configured any more stay, since voxels may have them.

    Args:
        file: keeps the names in use, and one beside it those that were renamed; its folder is made when the first
            name arrives.
        configured: names that the operator chose; clients cannot add any.
        recorded: gives `name` and `idx` of labels that there were, the newest first; called once, for numbers beyond
            the table, which may be older than the versions in a backup, and again if the table is lost.
    """

    def __init__(
        self,
        file: Path,
        configured: Sequence[str] | None = None,
        recorded: Callable[[], Iterable[Sequence[Mapping[str, Any]]]] = tuple,
    ) -> None:
        self._file, self._configured, self._recorded = file, configured, recorded
        self._renamed_file = file.with_name("renamed.json")
        self._last_known: dict[int, str] | None = None
        self._beyond: dict[int, str] | None = None
        self.lock = _TableLock(file)
        """Held from `mapping` to `register`, so that two clients cannot be given the same index."""

        self._used, self._counting = Counter[int](), Lock()

    @contextmanager
    def used(self, indices: Collection[int]) -> Iterator[None]:
        """Until it ends none of these labels can be removed: what has them is being stored."""
        with self._counting:
            self._used.update(indices)
        try:
            yield
        finally:
            with self._counting:
                self._used.subtract(indices)

    def is_used(self, index: int) -> bool:
        """Whether something with this label index is being stored; asked while `lock` is held."""
        return self._used[index] > 0

    @property
    def fixed(self) -> bool:
        """Whether the operator chose the names."""
        return self._configured is not None

    @property
    def renamed(self) -> dict[str, str]:
        """`{former name: present name}` of the labels that were renamed."""
        return self._renamed

    @property
    def names(self) -> list[str]:
        """Names in the order of their indices; the first one has index 1."""
        known = self._known
        new = iter(self._not_yet_in(known))
        taken = {BACKGROUND_SCRIBBLE: _NO_LABEL} | known
        numbered = [taken.get(i) or next(new, f"unnamed_{i}") for i in range(1, max(known, default=0) + 1)]
        return extended(numbered, new)

    @property
    def indices(self) -> dict[str, int]:
        """`{name: index}`."""
        return {name: index for index, name in enumerate(self.names, start=1)}

    @property
    def by_index(self) -> dict[int, str]:
        """`{index: name}`."""
        return dict(enumerate(self.names, start=1))

    def mapping(
        self, present: Iterable[int], label_info: Sequence[Mapping[str, Any]] | None
    ) -> tuple[dict[int, int], list[str]]:
        """How the values of a client's file become indices; nothing is stored yet.

        A client that has not seen that a label was renamed means the label by its former name.

        Args:
            present: the file's values other than 0.
            label_info: the client's names; None if the values are the app's indices.

        Returns:
            `{value: index}`, where background and scribble segments have no entry, and the names to `register` for it:
            those that came with it, and configured ones up to the last one in use.

        Raises:
            InputError: for a value without a name, or a name that is not among the configured ones.
        """
        named, new = self.named(present, label_info)
        known = self.names
        names = extended(known, new)
        check_number(names, known)
        indices = {name: index for index, name in enumerate(names, start=1)}
        mapped = {value: indices[name] for value, name in named.items()}
        if self.fixed:
            return mapped, self.configured_up_to(mapped.values())
        return mapped, names[len(self._stored or ()) :]

    def named(
        self, present: Iterable[int], label_info: Sequence[Mapping[str, Any]] | None
    ) -> tuple[dict[int, str], list[str]]:
        """What the values of a client's file are called, as `mapping` has it, and the new names that came with it.

        Raises:
            InputError: for a value without a name, or a name that is not among the configured ones.
        """
        values = sorted(set(present))
        if label_info is None:
            named = dict(zip(values, self._numbered(values), strict=True))
            submitted = [*self._fillers(values), *named.values()]
        else:
            label_info = self._by_present_names(label_info)
            named = {v: name for v, name in names_by_value(values, label_info).items() if name not in NOT_STRUCTURES}
            submitted = [name for entry in label_info if (name := entry["name"]) not in NOT_STRUCTURES]
        known = self.names
        new = list(dict.fromkeys(name for name in submitted if name not in known))
        if self._configured is not None:
            unknown = [name for name in named.values() if name not in known]
            if unknown:
                raise InputError(f"unknown labels {unknown}; this server's labels are {known}")
            new = []
        return named, new

    def configured_up_to(self, indices: Iterable[int]) -> list[str]:
        """Names to `register` when labels with these indices come into use; none if all of them were before."""
        return self.names[len(self._stored or ()) : max((*indices, *self._known), default=0)]

    def register(self, new: Sequence[str]) -> None:
        """Append names; indices given before stay.

        Raises:
            FileError: if the table cannot be written.
        """
        if new:
            self._write([*(self._stored or ()), *new])

    def replace(self, names: Sequence[str], renamed: Mapping[str, str]) -> None:
        """Change the whole table; the caller takes care that every index keeps its meaning.

        Args:
            names: in the order of their indices.
            renamed: `{old name: new name}` of those that are renamed by that.

        Raises:
            FileError: if the table cannot be written.
        """
        if renamed:
            before = {old: renamed.get(name, name) for old, name in self._renamed.items()}
            write_table(self._renamed_file, dict([*before.items(), *renamed.items()][-MAX_RENAMED:]))
        self._write(names)

    def _write(self, names: Sequence[str]) -> None:
        write_table(self._file, list(names))
        self._beyond = {}
        self._last_known = dict(enumerate(names, start=1))

    @property
    def _stored(self) -> Sequence[str] | None:
        """The table; None if it is lost, or nothing was in use yet."""
        version = _version(self._file)
        names: Sequence[str] | None = _read_names(self._file, version) if version else read_table(self._file)
        return names

    @property
    def _known(self) -> dict[int, str]:
        """`{index: name}` of those in use, without the table those seen or recorded last."""
        stored = self._stored
        if stored is not None:
            if self._beyond is None:
                self._beyond = self._recorded_beyond(stored)
            beyond = {index: name for index, name in self._beyond.items() if index > len(stored)}
            self._last_known = dict(enumerate(stored, start=1)) | beyond
        elif self._last_known is None:
            self._last_known = recorded_names(self._recorded(), self._renamed)
            if self._last_known:
                logger.warning("%s is missing; the versions of the studies name %s", self._file, self._last_known)
        return self._last_known

    def _recorded_beyond(self, stored: Sequence[str]) -> dict[int, str]:
        """`{index: name}` of the labels that versions have beyond the table; one whose name is taken has none."""
        table = [{"name": name, "idx": index} for index, name in enumerate(stored, start=1)]
        try:
            recorded = [table, *self._recorded()]
        except (OSError, SlicePropError):
            logger.exception("whether versions have labels that %s lacks is not known", self._file)
            return {}
        used = {index for label_info in recorded for entry in label_info if (index := _whole_number(entry.get("idx")))}
        told = {index: name for index, name in recorded_names(recorded, self._renamed).items() if name not in stored}
        beyond = {index: told.get(index, f"unnamed_{index}") for index in sorted(used) if index > len(stored)}
        if beyond:
            logger.warning("%s is older than the versions of the studies, which name also %s", self._file, beyond)
        return beyond

    def _not_yet_in(self, known: Mapping[int, str]) -> list[str]:
        """Configured names that are not in use, nor a former name of what is."""
        chosen, used = self._configured or (), set(known.values())
        names = [name for name in chosen if name not in used]
        renamed = self._renamed if names and used else {}
        return [name for name in names if (new := renamed.get(name)) not in used or new in chosen]

    @property
    def _renamed(self) -> dict[str, str]:
        """`{former name: name}`."""
        return dict(read_table(self._renamed_file) or {})

    def _by_present_names(self, label_info: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """A client's names, renamed ones by their present name unless the client has a label of that name as well."""
        given = {name for entry in label_info if isinstance(name := entry.get("name"), str)}
        known, meant = self.names, dict[str, str]()
        for old, new in self._renamed.items():
            if old in given and old not in known and new in known and new not in {*given, *meant.values()}:
                meant[old] = new
        return [
            {**entry, "name": meant[name]} if (name := str(entry.get("name"))) in meant else entry
            for entry in label_info
        ]

    def _numbered(self, values: Sequence[int]) -> list[str]:
        """Names of values that are indices; one too large for that has a label of its own, perhaps renamed by now."""
        known = {index: name for index, name in self.by_index.items() if name != _NO_LABEL}
        large = [{"name": f"label_{v}", "idx": v} for v in values if v not in known and v >= BACKGROUND_SCRIBBLE]
        known |= {entry["idx"]: str(entry["name"]) for entry in self._by_present_names(large)}
        return [known.get(value, f"label_{value}") for value in values]

    def _fillers(self, values: Iterable[int]) -> list[str]:
        """Names for the gaps below small values, which stay their own indices; for others they would be too many."""
        top = max((value for value in values if value < BACKGROUND_SCRIBBLE), default=0)
        return [f"label_{value}" for value in range(len(self.names) + 1, top + 1)]


@lru_cache(maxsize=8)
def _read_names(file: Path, version: tuple[int, ...]) -> tuple[str, ...] | None:
    """The table of a file, read again only if the file is another one: every `GET /info/` asks for each model."""
    names = read_table(file)
    return None if names is None else tuple(names)


def _version(file: Path) -> tuple[int, ...]:
    try:
        return file_state(file)
    except OSError:
        return ()
