"""The KV rules in torch, for training and as what the runtime is compared with: how tokens that left early are seen.

`exact`: as if they had not left. `propagate`: the depths they skip compute keys and values from the state they left
with (CALM, arXiv 2207.07061). `latest`: the depths they skip read their deepest keys and values (Huginn, arXiv
2502.05171). `skip`: the depths they skip do not see them (Mixture-of-Recursions, arXiv 2507.10524).

Each is an object in `KV_RULES`, which holds all in which it differs from the others; `kv_rule` finds it by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES, KVRuleName
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:  # so that options are read without torch
    from torch import Tensor

MaskFunction = Callable[[Any, Any, Any, Any], Any]  # transformers': batch, head, query, key -> may it see


class LeftKeyValues:
    """Stands where a cache would, for a whole text: of tokens that have left, a run of the block uses the keys and
    values of the run before, which under `latest` is that of the depth before and under `propagate` one of the states
    they left with."""

    def __init__(self) -> None:
        self.exited: Tensor | None = None  # bool [B, S]: have left before the depth that runs
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, KV, S, D] for a layer's attention."""
        if self.exited is not None:
            exited = self.exited[:, None, :, None]
            old_keys, old_values = self._held[layer]
            keys, values = old_keys.where(exited, keys), old_values.where(exited, values)
        self._held[layer] = (keys, values)
        return keys, values


class LeftTokens:
    """The tokens of a whole text that have left, in one pass through the depths: what the others see of them.

    As it is here, they are seen as if they had not left.

    Attributes:
        key_values: what stands in the place of the block's cache, if anything does.
        mask: which tokens may be seen beside what the causal mask says, if not all.
    """

    def __init__(self, hidden: Tensor) -> None:
        """`hidden`: what enters the first depth, [B, S, H]."""
        self.key_values: LeftKeyValues | None = None
        self.mask: MaskFunction | None = None

    def before_depth(self, exited: Tensor, leaving: Tensor, hidden: Tensor, run_block: Callable[..., Tensor]) -> None:
        """Prepare for a depth that some tokens skip.

        Args:
            exited: bool [B, S], the tokens that have left before it.
            leaving: bool [B, S], those of them that have left right before it.
            hidden: what enters it, [B, S, H].
            run_block: runs the block at it: hidden states, `cache` and `frozen` as `RecursiveModel` has them.
        """


class PropagatedTokens(LeftTokens):
    """Their keys and values are those of the states they left with."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(hidden)
        self._states = hidden  # that tokens left with

    def before_depth(self, exited: Tensor, leaving: Tensor, hidden: Tensor, run_block: Callable[..., Tensor]) -> None:
        self._states = hidden.where(leaving[..., None], self._states)
        self.key_values = LeftKeyValues()
        entering = self._states.where(exited[..., None], hidden)
        run_block(entering, cache=self.key_values, frozen=exited[..., None])
        self.key_values.exited = exited


class LatestTokens(LeftTokens):
    """Their keys and values are those of the deepest depth they ran."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(hidden)
        self.key_values = LeftKeyValues()

    def before_depth(self, exited: Tensor, leaving: Tensor, hidden: Tensor, run_block: Callable[..., Tensor]) -> None:
        assert self.key_values is not None
        self.key_values.exited = exited


class UnseenTokens(LeftTokens):
    """They are seen by themselves alone."""

    def before_depth(self, exited: Tensor, leaving: Tensor, hidden: Tensor, run_block: Callable[..., Tensor]) -> None:
        def may_be_seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return ~exited[batch, key] | (query == key)

        self.mask = may_be_seen


@dataclass(frozen=True)
class KVRule:
    """A KV rule, with all in which it differs from the others.

    Attributes:
        left_tokens: what the depths that a token skips see of it.
        exits_matter: whether a token sees where others left; then training draws exits.
        propagates: whether the exported graph computes keys and values from the states of rows that have left.
        goes_with_windows: whether a model's attention may slide over a window.
    """

    name: KVRuleName
    left_tokens: type[LeftTokens] = LeftTokens
    exits_matter: bool = True
    propagates: bool = False
    goes_with_windows: bool = True


KV_RULES: dict[str, KVRule] = {
    rule.name: rule
    for rule in (
        KVRule("exact", exits_matter=False),
        KVRule("propagate", PropagatedTokens, propagates=True),
        KVRule("latest", LatestTokens),
        KVRule("skip", UnseenTokens, goes_with_windows=False),
    )
}


def kv_rule(name: str) -> KVRule:
    """
    Raises:
        BadInputError: there is no such rule.
    """
    if name not in KV_RULES:
        raise BadInputError(f"kv_rule {name!r}: choose from {', '.join(KV_RULE_NAMES)}")
    return KV_RULES[name]
