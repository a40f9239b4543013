"""Whether a device's attention is right, measured when it is opened: drivers and providers differ, some silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.device_graphs import Attention
from rrt_edge.runtime.running.devices.device import OpenDevice

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Float = NDArray[np.float32]
FEW, MANY = 31, 128  # rows of a call: above 31 some providers take another way
PAST = 40  # rows that are there before
TOLERANCE = 0.02  # of the largest number


def rows_at_once(
    session: InferenceSession, device: OpenDevice, shape: Architecture, dtype: type[np.generic], attention: Attention
) -> int:
    """Rows that one call may bring so that attention is right: 128, 31, or 0.

    Args:
        session: of GroupQueryAttention alone.
    """
    right = 0
    for rows in (1, FEW, MANY):
        if not _is_right(session, device, shape, dtype, attention, rows):
            break
        right = rows
    return right if right >= FEW else 0


def _is_right(
    session: InferenceSession,
    device: OpenDevice,
    shape: Architecture,
    dtype: type[np.generic],
    attention: Attention,
    rows: int,
) -> bool:
    rng = np.random.default_rng(rows)
    heads, kv_heads, size = shape.attention_heads, shape.key_value_heads, shape.head_dim

    largest = max(1.0, (attention.softcap or 0) / 4)  # of scores: where a cap would show
    spread = (largest / (attention.scale * size**0.5)) ** 0.5

    def random(*sizes: int) -> NDArray[Any]:
        numbers: NDArray[Any] = (rng.standard_normal(sizes, np.float32) * spread).astype(dtype)
        return numbers

    queries = random(heads, rows, size)
    keys, values = (random(kv_heads, PAST + rows, size) for _ in range(2))
    with device.working():
        mixed = _found(session, device, dtype, queries, keys, values).reshape(rows, heads, size)
    expected = _attention(attention, *(array.astype(np.float32) for array in (queries, keys, values)))
    return bool(np.abs(mixed - expected).max() <= TOLERANCE * np.abs(expected).max())


def _found(
    session: InferenceSession,
    device: OpenDevice,
    dtype: type[np.generic],
    queries: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
) -> Float:
    """Run the device's attention; return its output [rows, H * D]."""
    (heads, rows, size), kv_heads = queries.shape, len(keys)
    binding = session.io_binding()
    for name, rows_of in (("q", queries), ("k", keys[:, PAST:]), ("v", values[:, PAST:])):
        binding.bind_cpu_input(name, np.ascontiguousarray(rows_of.transpose(1, 0, 2)).reshape(1, rows, -1))
    for name, side in (("key", keys), ("value", values)):
        past = np.zeros((1, kv_heads, PAST + rows, size), dtype)
        past[0, :, :PAST] = side[:, :PAST]
        plane = device.upload(past)
        binding.bind_ortvalue_input(f"past_{name}", plane)
        binding.bind_ortvalue_output(f"present_{name}", plane)
    binding.bind_cpu_input("last_row", np.array([PAST + rows - 1], np.int32))
    binding.bind_cpu_input("length", np.array(PAST + rows, np.int32))
    mixed = device.host((1, rows, heads * size), dtype)
    binding.bind_ortvalue_output("attended", mixed)
    device.run(session, binding)
    result: Float = mixed.numpy()[0].astype(np.float32)
    return result


def _attention(attention: Attention, queries: Float, keys: Float, values: Float) -> Float:
    """Causal grouped attention, [rows, H, D], of the last rows [H, rows, D] over keys and values [KV, P + rows, D]."""
    rows, length, group = queries.shape[1], keys.shape[1], len(queries) // len(keys)
    keys, values = np.repeat(keys, group, axis=0), np.repeat(values, group, axis=0)
    scores = queries @ keys.transpose(0, 2, 1) * attention.scale
    if attention.softcap is not None:
        scores = attention.softcap * np.tanh(scores / attention.softcap)
    own, column = np.arange(length - rows, length)[:, None], np.arange(length)
    hidden = column > own
    if attention.window is not None:
        hidden |= column <= own - attention.window
    scores = np.where(hidden, -np.inf, scores)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Float = (shares / shares.sum(axis=-1, keepdims=True) @ values).transpose(1, 0, 2)
    return mixed
