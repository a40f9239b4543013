"""What a bundle's bits cost, as its manifest keeps it: measured at export, on texts that nothing was fitted to."""

from __future__ import annotations

from dataclasses import dataclass

from rrt_edge.runtime.bundle.manifest_reader import Fields

MOST_NATS = 1e3


@dataclass(frozen=True)
class DepthCost:
    """`kl`: mean KL(source || bundle) in nats; `top1_agreement`: share of positions with the same likeliest token."""

    kl: float
    top1_agreement: float


@dataclass(frozen=True)
class Cost:
    """Each depth's, and the perplexity of full depth before and after; `positions` are measured."""

    positions: int
    depths: tuple[DepthCost, ...]
    perplexity: float
    source_perplexity: float

    @property
    def ratio(self) -> float:
        """Of the perplexities: 1 where the bits cost nothing."""
        return self.perplexity / self.source_perplexity

    @classmethod
    def read(cls, fields: Fields, loops: int) -> Cost:
        """
        Raises:
            BundleError: a field is missing or out of bounds.
        """
        rows = fields.get("depths")
        if not isinstance(rows, list) or len(rows) != loops or not all(isinstance(row, dict) for row in rows):
            raise fields.fail("cost.depths", f"must be a list of {loops} objects")
        depths = tuple(_read_depth(Fields(fields.path, row)) for row in rows)
        most = float("inf")
        positions = fields.count("positions", 1, 1 << 40)
        return cls(positions, depths, fields.number("perplexity", most), fields.number("source_perplexity", most))


def _read_depth(fields: Fields) -> DepthCost:
    kl, agreement = fields.get("kl"), fields.get("top1_agreement")
    if type(kl) not in (int, float) or not 0 <= kl <= MOST_NATS:
        raise fields.fail("cost.depths.kl", f"must be a number from 0 to {MOST_NATS:g}")
    if type(agreement) not in (int, float) or not 0 <= agreement <= 1:
        raise fields.fail("cost.depths.top1_agreement", "must be a number from 0 to 1")
    return DepthCost(float(kl), float(agreement))
