"""Rounding that knows the inputs: what one weight's rounding does to the output, the later ones make good.

With H the sum of x x^T over a linear's inputs, the output loses |(Q - W) H^1/2|^2 energy when Q stands for W. Columns
are rounded one after another and the error of each is spread over those that follow (GPTQ, arXiv 2210.17323); then
scales and codes are improved in turns while the others stay: scales by least squares, codes one column at a time
(coordinate descent, as in QuantEase, arXiv 2309.01885). Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.quantisation.blocks import BLOCK, Quantized, pad_to_block
from rrt_edge.quantisation.packing import pack

Float = NDArray[np.float32]
PANEL = 128  # columns whose error is spread among themselves first; whole blocks
SHRINKS = np.linspace(1.06, 0.61, 16, dtype=np.float32)  # candidate scales, relative to those that clip nothing
ROWS = 64  # rows whose scales are solved for together
TURNS = 3


@dataclass(frozen=True)
class Inputs:
    """What rounding knows of the inputs of one or several linears; columns that pad the last block included.

    Attributes:
        moment: [in, in], positive definite: the sum of x x^T, damped.
        spread: [in, in], upper triangular: by how much columns behind one make its error good, times its diagonal.
        columns: without padding.
        block: weights that share a scale, at most `PANEL`.
    """

    moment: Float
    spread: Float
    columns: int
    block: int

    @classmethod
    def of(cls, moment: NDArray[np.float64], block: int = BLOCK) -> Inputs:
        columns = len(moment)
        padded = pad_to_block(columns, block)
        if padded > columns:  # inputs that are always zero
            moment = np.pad(moment, ((0, padded - columns),) * 2)
            beyond = np.arange(columns, padded)
            moment[beyond, beyond] = np.diag(moment)[:columns].mean()
        single = moment.astype(np.float32)
        root = np.linalg.inv(np.linalg.cholesky(moment))
        inverse = root.T @ root
        del root, moment  # large ones
        return cls(single, np.linalg.cholesky(inverse).T.astype(np.float32), columns, block)


def compensated(weight: Float, inputs: Inputs, bits: int, turns: int = TURNS) -> Quantized:
    """Quantise a matrix [out, in] so that its output on some inputs loses least.

    Args:
        bits: 4 or 8.
        turns: how often scales and codes are improved in turns.
    """
    out, block, moment = len(weight), inputs.block, inputs.moment
    weight = np.pad(weight, ((0, 0), (0, len(moment) - inputs.columns)))
    codes, scales = _spread(weight, inputs.spread, bits, block)
    for _ in range(turns):
        scales = _best_scales(weight, moment, codes, scales)
        _improve(weight, moment, codes, scales, bits)
    middle = 2 ** (bits - 1)
    unsigned = (codes + middle).astype(np.uint8).reshape(out, -1, block)
    return Quantized(pack(unsigned, bits), np.ascontiguousarray(scales), bits, inputs.columns)


def _spread(weight: Float, spread: Float, bits: int, block: int) -> tuple[Float, Float]:
    """Codes less the middle [out, in] and scales [out, blocks]: each column's error is spread over those behind it."""
    middle, columns = 2 ** (bits - 1), weight.shape[1]
    importance = (1 / np.square(np.diag(spread))).astype(np.float32)
    left = weight.copy()
    codes = np.zeros(weight.shape, np.float32, order="F")
    scales = np.zeros((len(weight), columns // block), np.float32)
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        panel = np.asfortranarray(left[:, start:end])
        errors, own = np.zeros_like(panel), spread[start:end, start:end]
        for at in range(end - start):
            column = start + at
            if column % block == 0:
                weights = np.ascontiguousarray(panel[:, at : at + block])
                scales[:, column // block] = _scales(weights, importance[column : column + block], bits)
            scale = scales[:, column // block]
            codes[:, column] = np.clip(np.rint(panel[:, at] / scale), -middle, middle - 1)
            errors[:, at] = (panel[:, at] - codes[:, column] * scale) / own[at, at]
            panel[:, at + 1 :] -= errors[:, at, None] * own[at, at + 1 :]
        left[:, end:] -= errors @ spread[start:end, end:]
    return codes, scales


def _scales(blocks: Float, importance: Float, bits: int) -> Float:
    """The scales [rows] of blocks [rows, block] that lose least, where an error counts by its column's importance."""
    middle = np.float32(2 ** (bits - 1))
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    best, least = np.ones_like(largest), np.full(largest.shape, np.inf, np.float32)
    for end in (-middle, middle - 1):
        for shrink in SHRINKS if bits < 8 else SHRINKS[1:4]:
            scale = largest * (shrink / end)
            scale[scale == 0] = 1.0
            rounded = np.clip(np.rint(blocks / scale[:, None]), -middle, middle - 1) * scale[:, None]
            error = np.square(rounded - blocks) @ importance
            better = error < least
            least[better], best[better] = error[better], scale[better]
    return best


def _best_scales(weight: Float, moment: Float, codes: Float, scales: Float) -> Float:
    """The scales with which these codes lose least: for each row the solution of a system of as many equations."""
    rows, blocks = scales.shape
    block = codes.shape[1] // blocks
    aims = (weight @ moment).reshape(rows, blocks, block)
    best = scales.copy()
    for start in range(0, rows, ROWS):
        own = np.ascontiguousarray(codes[start : start + ROWS]).reshape(-1, blocks, block)
        products = np.stack([own[:, at] @ moment[at * block :][:block] for at in range(blocks)], axis=1)
        system = np.einsum("rkbi,rbi->rkb", products.reshape(len(own), blocks, blocks, block), own, dtype=np.float64)
        diagonal = np.arange(blocks)
        unused = system[:, diagonal, diagonal] == 0  # blocks whose codes are all zero, whatever their scale
        system[:, diagonal, diagonal] = np.where(unused, 1.0, system[:, diagonal, diagonal] * (1 + 1e-6))
        aim = np.einsum("rbi,rbi->rb", own, aims[start : start + ROWS], dtype=np.float64)
        solved = np.linalg.solve(system, aim[..., None])[..., 0].astype(np.float32)
        usable = ~unused & np.isfinite(solved) & (solved != 0)
        best[start : start + ROWS] = np.where(usable, solved, scales[start : start + ROWS])
    return best


def _improve(weight: Float, moment: Float, codes: Float, scales: Float, bits: int) -> None:
    """Set each column's codes, in place, to what loses least while the others stay as they are."""
    middle, columns = 2 ** (bits - 1), weight.shape[1]
    block = columns // scales.shape[1]
    gradient = (codes * np.repeat(scales, block, axis=1) - weight) @ moment
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        panel = np.asfortranarray(gradient[:, start:end])
        changes, own = np.zeros_like(panel), moment[start:end, start:end]
        for at in range(end - start):
            column = start + at
            scale = scales[:, column // block]
            aim = codes[:, column] - panel[:, at] / (own[at, at] * scale)
            changed = np.clip(np.rint(aim), -middle, middle - 1)
            changes[:, at] = (changed - codes[:, column]) * scale
            codes[:, column] = changed
            (rows,) = np.nonzero(changes[:, at])
            panel[rows] += changes[rows, at, None] * own[at]
        gradient += changes @ moment[start:end]
