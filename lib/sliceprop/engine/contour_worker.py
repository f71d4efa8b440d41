"""Child process that runs ITK's morphological contour interpolator, so that a crash in it ends only this process.

Run as a script, without the package, so that it starts in a second or two: reads label volumes `(S, H, W)` from
standard input and writes the interpolated ones to standard output, until its input ends.
"""

import io
import os
import signal
import struct
import sys
import types
from typing import IO

import numpy as np
from numpy.typing import NDArray

LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], labels: NDArray[np.uint16]) -> None:
    """Write one array as `.npy`, preceded by its length in bytes."""
    buffer = io.BytesIO()
    np.save(buffer, labels, allow_pickle=False)
    stream.write(LENGTH.pack(buffer.tell()) + buffer.getvalue())
    stream.flush()


def receive(stream: IO[bytes]) -> NDArray[np.uint16] | None:
    """Read one array; None where the stream ends."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    content = stream.read(length)
    return np.load(io.BytesIO(content), allow_pickle=False) if len(content) == length else None


def main() -> None:
    """Answer requests until the input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what ITK prints must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its input
    sys.modules["torch"] = types.ModuleType("torch")  # itk would import it to recognise tensors: another two seconds
    import itk

    # `itk.MorphologicalContourInterpolator` is the same class, but loads every ITK module around it: 14 seconds.
    from itk.itkMorphologicalContourInterpolatorPython import itkMorphologicalContourInterpolatorIUS3

    while (labels := receive(requests)) is not None:
        interpolator = itkMorphologicalContourInterpolatorIUS3.New()
        interpolator.SetInput(itk.image_from_array(labels))
        interpolator.SetAxis(2)  # ITK counts axes from the last one of the array
        interpolator.Update()
        send(answers, itk.array_from_image(interpolator.GetOutput()))


if __name__ == "__main__":
    main()
