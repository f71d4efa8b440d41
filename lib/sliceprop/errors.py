"""Exceptions of the package: one tree, so that every front end translates them in one place."""


class SlicePropError(Exception):
    """Base of every error that the package raises on purpose; its message is meant for the user."""


class InputError(SlicePropError, ValueError):
    """What the caller gave cannot be used; the message says what was found, what was wanted and what to do."""


class ShapeError(InputError):
    """Arrays whose shapes do not fit each other or have the wrong number of axes."""


class GeometryError(InputError):
    """Affines or spacings that do not fit each other or are not valid."""


class NoAnnotationError(InputError):
    """The request needs at least one annotated slice and there is none."""


class FileError(InputError):
    """A file or folder that cannot be read or written."""


class StorageError(FileError):
    """A folder that does not take what should be kept, or does not give it back: read-only, full, or out of reach."""


class CheckpointError(InputError):
    """A checkpoint that is damaged, tampered with, or made by another version or for another study."""


class TooLargeError(InputError):
    """A study that would not fit into memory, found before the memory runs out."""


class MemoryTakenError(TooLargeError):
    """A study that fits into memory, but not beside the other work that goes on; nothing is wrong with it."""


class ContourError(SlicePropError):
    """The contour interpolator crashed or took too long; another method works."""
