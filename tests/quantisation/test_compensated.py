"""Rounding that knows the inputs loses less of the output than rounding to the nearest, and says what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from rrt_edge.quantisation.blocks import dequantize, quantize
from rrt_edge.quantisation.compensated import Inputs, compensated
from rrt_edge.quantisation.packing import pack, unpack


def inputs(columns: int, seed: int = 0) -> np.ndarray:
    """The sum of x x^T over inputs that depend on each other, a few of them large, as those of real layers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    x = (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(rng.standard_normal(columns))
    moment = x.T @ x
    return np.asarray(moment + 0.01 * np.diag(moment).mean() * np.eye(columns))


def lost(weight: np.ndarray, rounded: np.ndarray, moment: np.ndarray) -> float:
    error = (rounded - weight).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", error, moment, error))


@pytest.mark.parametrize("shape", [(48, 256), (7, 96), (33, 160), (5, 72)])
@pytest.mark.parametrize("bits, share", [(4, 0.6), (8, 0.8)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_less_of_the_output_is_lost(shape: tuple[int, int], bits: int, share: float, block: int) -> None:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    moment = inputs(shape[1])
    ours = compensated(weight, Inputs.of(moment, block), bits)
    assert ours.shape == shape and ours.bits == bits and ours.block == block and ours.scales.dtype == np.float32
    nearest = dequantize(quantize(weight, bits, block))
    assert lost(weight, dequantize(ours), moment) < share * lost(weight, nearest, moment)


def test_turns_lose_less_each_time() -> None:
    weight, moment = np.random.default_rng(2).standard_normal((16, 192)).astype(np.float32), inputs(192)
    losses = [lost(weight, dequantize(compensated(weight, Inputs.of(moment), 4, turns)), moment) for turns in range(5)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(losses))
    assert losses[3] < 0.97 * losses[0]


def test_no_code_alone_could_be_better() -> None:
    """Once turns change nothing, neither does any other code of any column, tried one by one."""
    weight, moment = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32), inputs(64)
    ours = compensated(weight, Inputs.of(moment), 4, turns=60)
    least = lost(weight, dequantize(ours), moment)
    codes = unpack(ours.packed, 4).reshape(2, 64)
    for row, column, code in itertools.product(range(2), range(64), range(16)):
        changed = codes.copy()
        changed[row, column] = code
        other = replace(ours, packed=pack(changed.reshape(2, 2, 32), 4))
        assert lost(weight, dequantize(other), moment) >= least * (1 - 1e-5)


def test_a_matrix_that_has_codes_already_stays_as_it_is() -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(-8, 8, (6, 3, 32))
    codes[:, :, 0] = -8  # a scale that clips nothing is among the candidates
    weight = (codes * rng.uniform(0.5, 2, (6, 3, 1))).astype(np.float32).reshape(6, 96)
    np.testing.assert_allclose(dequantize(compensated(weight, Inputs.of(inputs(96)), 4)), weight, rtol=1e-5, atol=1e-5)


def test_the_same_again() -> None:
    weight, moment = np.random.default_rng(5).standard_normal((100, 128)).astype(np.float32), inputs(128)
    whole, again = compensated(weight, Inputs.of(moment), 4), compensated(weight, Inputs.of(moment), 4)
    assert np.array_equal(whole.packed, again.packed) and np.array_equal(whole.scales, again.scales)


def test_rows_of_zeros_and_inputs_that_never_came_are_no_trouble() -> None:
    weight = np.random.default_rng(6).standard_normal((4, 64)).astype(np.float32)
    weight[1] = 0
    x = np.random.default_rng(7).standard_normal((8, 64))
    x[:, 32:] = 0
    moment = x.T @ x
    moment += 0.01 * np.diag(moment).mean() * np.eye(64)
    rounded = dequantize(compensated(weight, Inputs.of(moment), 4))
    assert np.isfinite(rounded).all() and not rounded[1].any()
    assert lost(weight, rounded, moment) < lost(weight, dequantize(quantize(weight, 4)), moment)
