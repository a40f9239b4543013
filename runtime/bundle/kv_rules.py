"""The KV rules: what a token that leaves early is to the depths it skips, and all in which the rules differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rrt_edge.runtime.bundle.kv_rule_names import RunRuleName


@dataclass(frozen=True)
class KVRule:
    """A KV rule.

    Attributes:
        exact: every logit is that of an ordinary forward at its depth, wherever the tokens before it left. Only then
            may loop 1 draft, a prompt's deeper loops run later, and another request go on from a reply.
        waits: a row that leaves waits with its hidden state until a later row goes deeper.
        projects: the depths it skipped compute keys and values from the state that waited, which stays as it is; the
            graph has inputs for such states where its checkpoint was trained for the rule.
        copied_depth: of which of its own depths the depths it skipped read keys and values, by the depth it left at;
            None: they read none of them.
        leaves_gaps: the depths it skipped do not see it, so that their rows are not consecutive.
        on_devices: devices beside the CPU follow it.
        one_slot: all depths share one slot of keys and values, which keeps each row as the deepest depth it ran made
            it. The rows of a call see each other at their own depth; what the shallower depths made of them goes then.
    """

    name: RunRuleName
    exact: bool = False
    waits: bool = False
    projects: bool = False
    copied_depth: Callable[[int], int] | None = None
    leaves_gaps: bool = False
    on_devices: bool = False
    one_slot: bool = False

    def __str__(self) -> str:
        return self.name

    def slots(self, loops: int) -> int:
        """How many slots the keys and values of a model's depths have."""
        return 1 if self.one_slot else loops


KV_RULES: dict[RunRuleName, KVRule] = {
    rule.name: rule
    for rule in (
        KVRule("exact", exact=True, waits=True, on_devices=True),  # synchronised decoding, FREE, arXiv 2310.05424
        KVRule("propagate", waits=True, projects=True),  # state propagation, CALM, arXiv 2207.07061
        KVRule("latest", copied_depth=lambda depth: depth),  # cache sharing, Huginn, arXiv 2502.05171
        KVRule("skip", leaves_gaps=True),  # recursion-wise caching, Mixture-of-Recursions, arXiv 2507.10524
        KVRule(
            "last", copied_depth=lambda depth: depth, one_slot=True
        ),  # the last loop's cache, Ouro, arXiv 2510.25741
    )
}
EXACT = KV_RULES["exact"]
