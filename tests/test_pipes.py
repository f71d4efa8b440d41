"""Messages between processes: every array and value arrives as it was sent, half messages and others do not."""

from __future__ import annotations

import io
import math
import os
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from sliceprop import pipes

CUBE = np.arange(24).reshape(2, 3, 4)

ARRAYS = {
    "integers": CUBE,
    "a view with gaps": CUBE[:, ::2, ::-1],
    "fortran": np.asfortranarray(CUBE),
    "transposed": CUBE.T,
    "others' byte order": CUBE.astype(">u2"),
    "truth": CUBE % 2 == 0,
    "floats": np.array([0.1, -0.0, np.inf, np.nan, 5e-324], np.float64),
    "half": CUBE.astype(np.float16),
    "complex": CUBE + 1j,
    "empty": np.empty((0, 3), np.int16),
    "scalar": np.array(7, np.uint8),
}


def sent(plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    pipes.write(stream, plain, arrays)
    return stream.getvalue()


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_arrives_as_it_was(name: str) -> None:
    array = ARRAYS[name]
    got = pipes.read(io.BytesIO(sent({}, {name: array}))).arrays[name]
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()
    assert got.flags.writeable and got.flags.f_contiguous == (array.flags.f_contiguous or array.size == 0)


def test_values_arrive_as_json_has_them() -> None:
    values = {"third": 1 / 3, "big": 2**62, "text": "é\n\0", "path": "a\udc80b", "none": None, "pair": (1, (2.5,))}
    numbers = {"np32": np.float32(0.1), "count": np.int64(3), "yes": np.bool_(True)}
    got = pipes.read(io.BytesIO(sent(values | numbers, {}))).plain
    assert got == values | {"pair": [1, [2.5]], "np32": float(np.float32(0.1)), "count": 3, "yes": True}
    assert math.isnan(pipes.read(io.BytesIO(sent({"x": math.nan}, {}))).plain["x"])


def test_messages_follow_each_other_and_half_ones_are_none() -> None:
    first, second = sent({"n": 1}, {"a": CUBE, "b": CUBE.T}), sent({"n": 2}, {})
    stream = io.BytesIO(first + second)
    assert [pipes.read(stream).plain["n"] for _ in range(2)] == [1, 2]
    for length in range(len(first)):
        with pytest.raises(EOFError):
            pipes.read(io.BytesIO(first[:length]))


@pytest.mark.parametrize("noise", [b"Traceback (most recent call last):\n", b"\x80\x05\x95" + bytes(20), bytes(100)])
def test_what_is_no_message_is_noticed(noise: bytes) -> None:
    with pytest.raises(ValueError, match="begins with"):
        pipes.read(io.BytesIO(noise + sent({}, {})))


@pytest.mark.parametrize("strange", [np.array([object()]), np.array(["text"]), np.zeros(2, [("a", int)])])
def test_only_numbers_are_sent_and_else_nothing_is(strange: NDArray[Any]) -> None:
    stream = io.BytesIO()
    with pytest.raises(TypeError):
        pipes.write(stream, {}, {"good": CUBE, "strange": strange})
    with pytest.raises(TypeError):
        pipes.write(stream, {"strange": object()}, {"good": CUBE})
    assert stream.getvalue() == b""


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_go_through_a_pipe_without_a_copy(order: Literal["C", "F"]) -> None:
    array = np.arange(32 << 20, dtype=np.uint8).reshape((2, -1), order=order)
    source, sink = os.pipe()
    tracemalloc.start()
    try:
        with os.fdopen(source, "rb") as reader, ThreadPoolExecutor(1) as pool:
            got = pool.submit(pipes.read, reader)
            with os.fdopen(sink, "wb") as writer:
                pipes.write(writer, {}, {"array": array})
            arrived = got.result(60).arrays["array"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(arrived, array)
    assert peak < 1.1 * array.nbytes, "what arrived is the only copy"
