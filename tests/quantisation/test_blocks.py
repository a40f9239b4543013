"""Quantisation: the layout onnxruntime's kernels read, small errors, LoRA directions balanced."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from rrt_edge.quantisation.blocks import BLOCK, beside, dequantize, pad_to_block, quantize, rounded, stacked
from rrt_edge.quantisation.packing import pack, unpack
from rrt_edge.quantisation.scales import balance


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bytes_hold_the_codes_from_the_lowest_bits_on(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 5, 32), dtype=np.uint8)
    packed = pack(codes, bits)
    for row, byte in zip(codes.reshape(-1, 8 // bits), packed.ravel(), strict=True):
        assert int(byte) == sum(int(code) << bits * place for place, code in enumerate(row))
    np.testing.assert_array_equal(unpack(packed, bits).reshape(codes.shape), codes)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("columns", [32, 72, 160])
def test_onnxruntime_multiplies_by_what_dequantize_says(bits: int, block: int, columns: int) -> None:
    weight, x = normal(24, columns), normal(3, columns, seed=1)
    packed = quantize(weight, bits, block)
    assert packed.block == block and packed.packed.shape[1] * block == pad_to_block(columns, block)
    tensors = {"b": packed.packed, "s": packed.scales}
    attributes = {"K": columns, "N": 24, "bits": bits, "block_size": block}  # no accuracy_level: float products
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 24])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ dequantize(packed).T, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.integers(1, 100), st.floats(1e-4, 1e3))
def test_errors_stay_below_a_step(seed: int, bits: int, columns: int, size: float) -> None:
    weight = normal(5, columns, seed=seed) * np.float32(size)
    packed = quantize(weight, bits)
    error = np.abs(dequantize(packed) - weight)
    span = weight.max() - weight.min() + np.abs(weight).max()
    assert error.max() <= span / (2**bits - 1) * (6 if bits == 4 else 1)  # 4 bits may clip an outlier


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_onnxruntime_gathers_what_dequantize_says(bits: int, block: int) -> None:
    table = quantize(normal(50, 64), bits, block)
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    node = helper.make_node("GatherBlockQuantized", ["t", "i", "s"], ["y"], domain="com.microsoft", **attributes)
    tensors = [numpy_helper.from_array(table.packed.reshape(50, -1), "t"), numpy_helper.from_array(table.scales, "s")]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("i", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    rows = np.array([3, 49, 0, 3])
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"i": rows})
    np.testing.assert_allclose(y, dequantize(table)[rows], atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("columns", [64, 72])
def test_rounding_is_quantising_and_back(bits: int, block: int, columns: int) -> None:
    """To the last bit, where weights are ordinary, on the grid, tied, zero, too small for a scale, or large."""
    grid = np.random.default_rng(2).integers(-8, 8, (6, columns)).astype(np.float32) * np.float32(0.03)
    tied = np.resize(np.array([0.5, -0.5, 0.25, -0.125], np.float32), (2, columns))
    tiny = np.resize(np.array([1e-45, -3e-42, 0.0], np.float32), (2, columns))
    weight = np.concatenate([normal(300, columns), grid, tied, np.zeros_like(tied), tiny, normal(3, columns) * 1e30])
    weight = weight.astype(np.float32)
    before = weight.copy()
    np.testing.assert_array_equal(rounded(weight, bits, block), dequantize(quantize(weight, bits, block)))
    np.testing.assert_array_equal(weight, before)


def test_the_search_beats_plain_rounding() -> None:
    """Against the largest weight at the lowest code and nothing else tried, as llama.cpp's Q4_0 has it."""
    weight = normal(64, 320)
    blocks = weight.reshape(64, -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    plain = np.clip(np.round(blocks / (largest / -8)), -8, 7) * (largest / -8)
    ours = np.square(dequantize(quantize(weight, 4)) - weight).mean()
    assert ours < 0.92 * np.square(plain.reshape(64, -1) - weight).mean()


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("columns", [128, 256])
def test_matrices_that_are_put_together_keep_their_numbers(block: int, columns: int) -> None:
    """Whole blocks are taken over as they are, whatever stands beside them; fewer bits fit into more."""
    above, below = quantize(normal(6, columns), 4, block), quantize(normal(3, columns, seed=1), 8, block)
    whole = stacked([above, below])
    assert (whole.bits, whole.block, whole.shape) == (8, block, (9, columns))
    np.testing.assert_array_equal(dequantize(whole), np.concatenate([dequantize(above), dequantize(below)]))
    right = quantize(normal(9, 40, seed=2), 8, block)
    both = beside(whole, right)
    assert (both.bits, both.block, both.shape) == (8, block, (9, columns + 40))
    np.testing.assert_array_equal(dequantize(both), np.concatenate([dequantize(whole), dequantize(right)], axis=1))


@pytest.mark.parametrize("block", [32, 64, 128])
def test_what_does_not_end_with_a_block_is_rounded_with_what_follows(block: int) -> None:
    left, right = quantize(normal(6, 80), 8, block), quantize(normal(6, 40, seed=1), 8, block)
    both = beside(left, right)
    together = np.concatenate([dequantize(left), dequantize(right)], axis=1)
    np.testing.assert_array_equal(dequantize(both), dequantize(quantize(together, 8, block)))
    assert (both.block, both.shape) == (block, (6, 120))


def test_zeros_are_exact() -> None:
    assert not dequantize(quantize(np.zeros((4, 64), np.float32), 4)).any()
    weight = normal(4, 64)
    weight[:, ::3] = 0
    assert not dequantize(quantize(weight, 4))[:, ::3].any()


def test_balancing_keeps_the_product_and_saves_the_small_directions() -> None:
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(256, 32)))
    v, _ = np.linalg.qr(rng.normal(size=(192, 32)))
    a, b = v.T.astype(np.float32), (u * np.geomspace(10, 0.05, 32)).astype(np.float32)
    a2, b2 = balance(a, b)
    np.testing.assert_allclose(b2 @ a2, b @ a, atol=1e-4)

    def small_direction_error(a: np.ndarray, b: np.ndarray) -> float:
        """Of the 16 smallest directions, which share blocks of B with the 16 largest."""
        rough = dequantize(quantize(b, 4)) @ dequantize(quantize(a, 4))
        return float(np.linalg.norm(u[:, 16:].T @ (rough - b @ a) @ v[:, 16:]))

    assert small_direction_error(a2, b2) < 0.5 * small_direction_error(a, b)
