"""What the adapters of a depth start from, and what they leave of what sharing lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rrt_edge.conversion.side_by_side import InputSums

EPSILON = 1e-9  # of a mean square, which makes a system of equations solvable
CORRECTION = 0.7  # share of the error so far that a layer also makes good; all of it would fit the texts too closely


@dataclass(frozen=True)
class Kept:
    """How much of what sharing lost the adapters of a projection keep, as shares of energy (sum of squares).

    `kept` of all its layers together, `worst` of the source layer `worst_layer`.
    """

    projection: str
    kept: float
    worst: float
    worst_layer: int


@dataclass(frozen=True)
class OutputError:
    """What block and adapters of a projection lose of its output on the texts, as shares of energy (sum of squares).

    `error` of all its layers together, `worst` of the source layer `worst_layer`.
    """

    projection: str
    error: float
    worst: float
    worst_layer: int


class Energies:
    """Collects energies by projection and source layer: a part, and the whole that it is a share of."""

    def __init__(self) -> None:
        self._layers: dict[str, dict[int, tuple[float, float]]] = {}

    def add(self, projection: str, layer: int, part: float, whole: float) -> None:
        self._layers.setdefault(projection, {})[layer] = (part, whole)

    def kept(self) -> tuple[Kept, ...]:
        """A row for each projection whose layers differ; the parts are what is kept."""
        rows = []
        for projection, share, shares in self._shares():
            worst = min(shares, key=lambda layer: shares[layer])
            rows.append(Kept(projection, share, shares[worst], worst))
        return tuple(rows)

    def output_errors(self) -> tuple[OutputError, ...]:
        """A row for each projection; the parts are what is lost."""
        rows = []
        for projection, share, shares in self._shares():
            worst = max(shares, key=lambda layer: shares[layer])
            rows.append(OutputError(projection, share, shares[worst], worst))
        return tuple(rows)

    def _shares(self) -> list[tuple[str, float, dict[int, float]]]:
        """Each projection's share of all its layers together, and of each."""
        rows = []
        for projection, layers in self._layers.items():
            shares = {layer: part / whole for layer, (part, whole) in layers.items() if whole}
            if shares:
                part, whole = (sum(column) for column in zip(*layers.values(), strict=True))
                rows.append((projection, part / whole, shares))
        return rows


def residual_factors(residual: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """A [rank, in] and B [out, rank] whose product is the best rank-r approximation of `residual` [out, in].

    `U, S, Vt = svd(residual)`, B = U_r S_r, A = Vt_r (section 2.3). Where the residual is zero, A is Gaussian and B is
    zero, so that both can train. Returns also the energy (sum of squares) that the product keeps, and the residual's.
    """
    energy = float(residual.square().sum())
    if not energy:
        generator = torch.Generator().manual_seed(0)
        gaussian = torch.randn(rank, residual.shape[1], generator=generator) / residual.shape[1] ** 0.5
        return gaussian, torch.zeros(residual.shape[0], rank), 0.0, 0.0
    wide = _wide(residual)
    # The singular vectors of the smaller side are the eigenvectors of R R^T: 3 to 6 times as fast as the SVD. They are
    # orthonormal whatever the singular values, so that projecting on them loses nothing that squaring might.
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)  # [small, rank], the largest first
    projected = vectors.T @ wide
    s = projected.norm(dim=1)
    others = projected / s.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    u, vt = (vectors, others) if wide is residual else (others.T, vectors.T)
    return vt.contiguous(), u * s, float(s.square().sum()), energy


def output_factors(weight: Tensor, residual: Tensor, rank: int, sums: InputSums) -> tuple[Tensor, Tensor, float, float]:
    """A [rank, in] and B [out, rank] whose product stands best for `residual` [out, in] in a layer's output.

    With H = L L^T the sum of x x^T over the inputs x, |M L|^2 is the energy of the output M x. So the residual R is cut
    as `U, S, Vt = svd(R L)` and B A = U_r S_r Vt_r L^-1 (the idea of SVD-LLM, arXiv 2403.07378). R also takes over most
    of what the inputs lost on the way to this layer. The rows of A are orthonormal, as those of `residual_factors`.

    Args:
        weight: the source layer's, [out, in].
    Returns:
        A, B, the energy of the output that is lost, and that of the source's weight.
    """
    a, b, kept, energy = residual_factors(lost_output(weight, residual, sums), rank)
    whole = float((weight @ sums.root).square().sum())
    if not energy:
        return a, b, 0.0, whole
    a = torch.linalg.solve_triangular(sums.root, a, upper=False, left=False)
    rows, mixing = torch.linalg.qr(a.T)
    return rows.T.contiguous(), b @ mixing.T, energy - kept, whole


def spectrum(weight: Tensor, residual: Tensor, root: Tensor | None) -> Tensor:
    """What each rank more of an adapter for `residual` [out, in] keeps, as shares of the weight's energy, falling.

    Args:
        root: as `InputSums.root`; with it the energies are those of the output.
    """
    if root is not None:
        weight, residual = weight @ root, residual @ root
    wide = _wide(residual)
    squares: Tensor = torch.linalg.eigvalsh((wide @ wide.T).double()).flip(0).clamp_min(0)
    return squares / weight.double().square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose, with no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def refitted(weight: Tensor, residual: Tensor, a: Tensor, sums: InputSums) -> Tensor:
    """The B [out, rank] with which a given A [rank, in] stands best for `residual`, as `output_factors` has it."""
    reached = (a @ sums.root).double()  # [rank, in]
    squares = reached @ reached.T
    squares.diagonal().add_(EPSILON * squares.diagonal().mean())  # a row of A may be zero
    b = torch.cholesky_solve(reached @ lost_output(weight, residual, sums).T.double(), torch.linalg.cholesky(squares))
    return b.T.float().contiguous()


def lost_output(weight: Tensor, residual: Tensor, sums: InputSums) -> Tensor:
    """`residual` [out, in], and most of what the inputs lost on the way, in the norm of the output.

    The latter is the source's weight times the best linear guess of the inputs' error.
    """
    whitened = residual @ sums.root
    if sums.guess is not None:
        whitened += CORRECTION * (weight @ sums.guess) @ sums.root
    return whitened
