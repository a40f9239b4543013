"""Weights that we map for onnxruntime, so that pages of their file can be given back while it packs what they hold.

onnxruntime maps each tensor for itself, and keeps it until the session stands. By then every page has been read, and
what was packed of it is on the heap: both count as memory of the process.
"""

from __future__ import annotations

import io
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.system.onnxruntime import CPU, onnxruntime
from rrt_edge.runtime.system.protobuf import LENGTH, VARINT, fields, strings

WEIGHTS = "model.onnx.data"  # as the graph names their file
LEAST = 1 << 16  # bytes of a tensor that we map: to read a small one maps MBs around it, which onnxruntime does not
SECONDS = 0.01  # from one time that pages are given back to the next: some ten MB are packed meanwhile
GRAPH, TENSOR = 7, 5  # numbers of fields: of ONNX's ModelProto, and of its GraphProto
SIZE, DTYPE, NAME, PLACE = 1, 2, 8, 13  # of its TensorProto; a place is a key in field 1 and a value in field 2
DTYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8, 10: np.float16}


def open_session(graph: Path, options: onnxruntime.SessionOptions, mapped: bool) -> onnxruntime.InferenceSession:
    """A session on the CPU whose weights are mapped or read; on Linux we map them, elsewhere onnxruntime does."""
    path, values = graph.with_name(f"{graph.name}.data"), dict[str, onnxruntime.OrtValue]()
    if not path.exists():  # a bundle's graphs share one file, a weight cache's have one each
        path = graph.with_name(WEIGHTS)
    if not mapped:
        content = path.read_bytes()
        options.add_external_initializers_from_files_in_memory([path.name], [content], [len(content)])
    weights = _map(path) if mapped and sys.platform == "linux" else None
    if weights is not None:
        for name, array in _arrays(graph, weights):
            if array.nbytes >= LEAST:
                values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                options.add_initializer(name, values[name])
    with nullcontext() if weights is None else _giving_back(weights):
        session = onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
    session.weights = values  # it points to them: whoever still runs it has them as long
    return session


def _map(path: Path) -> mmap.mmap | None:
    """The mapped file; None where there is nothing to map."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # onnxruntime says what is wrong with it
        return None


def _arrays(graph: Path, weights: mmap.mmap) -> Iterator[tuple[str, NDArray[Any]]]:
    """The graph's tensors that are in the weights' file, by name."""
    try:
        for content in _messages(graph.read_bytes(), GRAPH):
            for tensor in _messages(content, TENSOR):
                yield from _array(tensor, weights)
    except (OSError, ValueError, OverflowError):  # onnxruntime sees to the rest, and says what is wrong with it
        pass


def _messages(message: bytes, field: int) -> Iterator[bytes]:
    """The messages in one field of another."""
    file = io.BytesIO(message)
    for number, kind, length in fields(file):
        if (number, kind) == (field, LENGTH):
            yield file.read(length)


def _array(tensor: bytes, weights: mmap.mmap) -> Iterator[tuple[str, NDArray[Any]]]:
    """A tensor's name and numbers; nothing where they are elsewhere, or kept in a way that is none of a bundle's."""
    name, dtype, shape, place = "", None, list[int](), dict[str, str]()
    file = io.BytesIO(tensor)
    for number, kind, value in fields(file):
        if (number, kind) == (SIZE, VARINT):
            shape.append(value)
        elif (number, kind) == (DTYPE, VARINT):
            dtype = DTYPES.get(value)
        elif (number, kind) == (NAME, LENGTH):
            name = file.read(value).decode()
        elif (number, kind) == (PLACE, LENGTH):
            entry = strings(io.BytesIO(file.read(value)))
            place[entry.get(1, "")] = entry.get(2, "")
    if dtype is None or place.keys() != {"location", "offset", "length"} or place["location"] != WEIGHTS:
        return  # a weight cache has more keys where the packed form is in the file, too
    count = math.prod(shape)
    if int(place["length"]) == count * np.dtype(dtype).itemsize:
        yield name, np.frombuffer(weights, dtype, count, int(place["offset"])).reshape(shape)


@contextmanager
def _giving_back(weights: mmap.mmap) -> Iterator[None]:
    """Give back pages that were read, all the while and at the end; what is read again comes from the file again."""
    done = threading.Event()

    def give_back() -> None:
        with suppress(OSError):  # the process has its memory locked
            while not done.wait(SECONDS):
                weights.madvise(mmap.MADV_DONTNEED)
            weights.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=give_back, name="weights", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
