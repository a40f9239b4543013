"""GGML's blocks carried over say the numbers that the `gguf` package dequantises, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as reference
from gguf.quants import quantize

from rrt_edge.quantisation.blocks import dequantize, stacked
from rrt_edge.quantisation.ggml import carried

RNG = np.random.default_rng(2)
WEIGHTS = RNG.standard_normal((7, 96)).astype(np.float32) * np.exp(RNG.standard_normal((7, 1))).astype(np.float32)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_every_code_and_scale_is_kept(kind: str, bits: int) -> None:
    number = GGMLQuantizationType[kind]
    rows = quantize(WEIGHTS, number)
    blocks = rows.reshape(-1, 34 if bits == 8 else 18)
    blocks[:, 2:] = RNG.integers(0, 256, blocks[:, 2:].shape)  # any code; the last block is zero
    blocks[-1, :2] = 0
    kept = carried(kind, rows)
    assert kept is not None and kept.bits == bits and kept.shape == WEIGHTS.shape
    np.testing.assert_array_equal(dequantize(kept), reference(rows, number))


def test_a_least_value_of_whole_steps_is_kept_and_another_is_not() -> None:
    rows = quantize(WEIGHTS, GGMLQuantizationType.Q4_1)
    assert carried("Q4_1", rows) is None
    blocks = rows.reshape(-1, 20)
    steps = RNG.integers(-20, 5, len(blocks))
    scales = np.ldexp(1.0, RNG.integers(-9, 0, len(blocks)))
    for at, (scale, least) in enumerate(zip(scales, scales * steps, strict=True)):
        blocks[at, :4] = np.array([scale, least], np.float16).view(np.uint8)
    kept = carried("Q4_1", rows)
    assert kept is not None and kept.bits == 8
    np.testing.assert_array_equal(dequantize(kept), reference(rows, GGMLQuantizationType.Q4_1))


def test_matrices_of_different_bits_stand_on_each_other() -> None:
    parts = [carried(kind, quantize(WEIGHTS, GGMLQuantizationType[kind])) for kind in ("Q4_0", "Q8_0")]
    assert parts[0] is not None and parts[1] is not None
    both = stacked([parts[0], parts[1]])
    assert both.bits == 8
    np.testing.assert_array_equal(dequantize(both), np.concatenate([dequantize(part) for part in parts if part]))


@pytest.mark.parametrize("kind", ["Q5_0", "Q6_K", "F16"])
def test_other_types_are_not_carried(kind: str) -> None:
    assert carried(kind, np.zeros((2, 66), np.uint8)) is None
