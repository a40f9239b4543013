"""`RecursiveConfig`: the source model's config, and how its layers are shared."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from rrt_edge.model.families import FAMILIES, windows
from rrt_edge.model.kv_rules import KVRule, kv_rule
from rrt_edge.model.sharing import COMPONENTS, Order, Rank, check_sharing
from rrt_edge.runtime.bundle.kv_rule_names import KVRuleName
from rrt_edge.runtime.bundle.looping import GateKind, Looping
from rrt_edge.runtime.errors import BadInputError


class RecursiveConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of a recursive model.

    Attributes:
        text_config: the config of the source model, unchanged; its `num_hidden_layers` counts the layers before
            sharing, which is also the number of KV slots (`loop * layers_per_block + layer`).
        source: the name of the checkpoint it was made from, where known.
        loops: times the block is run; divides `text_config.num_hidden_layers`.
        rank: LoRA rank of each depth on every linear of the block; 0 shares without relaxation. Below 1 it is a share
            of each linear's full rank.
        component_ranks: ranks that differ, by component: `attention` (queries and output), `kv`, `ffn`.
        init: how the block was initialised: `average`, `stepwise`, `lower` or `random`.
        order: which layers of the source a loop stands for: the next ones (`consecutive`), or every `loops`-th
            (`interleaved`).
        lora_init: how the adapters were: `svd` (of what sharing lost of the weights), `output` (of the layers'
            output on texts) or `zero`.
        own_vectors: whether each depth has norms and biases of its own; the paper shares them.
        norm_inside, gate_kind, exits, draft_depth: how the loops follow each other, and which may be read, where the
            source is a looped model of others (`rrt_edge.runtime.bundle.looping.Looping`).
        gate_trained: whether the exit gate was trained; an untrained gate asks never to leave early.
        kv_rule: what a token that leaves early is to the depths it skips, as trained: `exact`, `propagate`, `latest` or
            `skip`.
        exit_threshold: the gate value calibrated for leaving early, where one was.
        exit_points: those of named operating points (`rrt-edge calibrate`), which export writes into the bundle.
        trained_bits: the bits that weights were rounded to while it was trained, in blocks of `trained_block_size`;
            None: it was trained in floats.
        trained_eight_bit: the parts that had 8 bits then (`rrt_edge.quantisation.plan.Part`); None: those that have
            them by default.

    Raises:
        BadInputError: `loops` does not divide the layers, a rank is impossible, there is no such KV rule, it does not
            go with the model's sliding windows, or an operating point is no threshold.
    """

    model_type = "rrt"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    text_config: Any = None  # a PreTrainedConfig; a dict when read from JSON
    source: str | None = None
    loops: int = 2
    rank: Rank = 0
    component_ranks: Any = None  # dict[str, Rank]
    init: str = "average"
    order: Order = "consecutive"
    lora_init: str = "svd"
    own_vectors: bool = False
    norm_inside: bool = False
    gate_kind: GateKind = "mlp"
    exits: Any = None  # list[int]
    draft_depth: int = 1
    gate_trained: bool = False
    kv_rule: KVRuleName = "exact"
    exit_threshold: float | None = None
    exit_points: Any = None  # dict[str, float]
    trained_bits: int | None = None
    trained_block_size: int | None = None
    trained_eight_bit: Any = None  # list[Part]
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.component_ranks = dict(self.component_ranks or {})
        self.exit_points = self.exit_points or {}
        shares: list[Any] = [*self.exit_points.values()] if isinstance(self.exit_points, dict) else [None]
        if not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares):
            raise BadInputError("exit_points: must be names and thresholds between 0 and 1")
        layers = self.text_config.num_hidden_layers
        check_sharing(layers, self.loops, self.rank, self.component_ranks)
        may_slide = self.rule.goes_with_windows or self.text_config.model_type not in FAMILIES
        if not may_slide and any(windows(self.text_config)):
            raise BadInputError(f"kv_rule {self.kv_rule} does not go with a model whose attention slides over a window")

        is_known = self.text_config.model_type in FAMILIES
        if self.order == "interleaved" and is_known and len(set(windows(self.text_config))) > 1:
            raise BadInputError("order interleaved goes with models whose layers all attend alike, which these do not")
        if self.gate_kind == "hazard" and self.rule.propagates:
            raise BadInputError(f"kv_rule {self.kv_rule} does not go with this model's gate, which is a hazard")

    @property
    def looping(self) -> Looping:
        """How the loops follow each other."""
        gate: GateKind = "none" if self.loops == 1 else self.gate_kind
        exits = None if self.exits is None else tuple(self.exits)
        return Looping(self.norm_inside, gate, exits, self.draft_depth)

    @property
    def rule(self) -> KVRule:
        """The KV rule that `kv_rule` names."""
        return kv_rule(self.kv_rule)

    def source_layer(self, loop: int, layer: int) -> int:
        """The layer of the source that a layer of the block stands for in a loop; all count from 0."""
        return layer * self.loops + loop if self.order == "interleaved" else loop * self.layers_per_block + layer

    def same_states(self) -> list[tuple[int, int]]:
        """Of what layers run the state stands for the source's after how many layers: pairs (run from 0, layers).

        Where loops interleave, the first has done after a layer what the source has after as many as there are loops;
        later loops go through it again, and their states stand for none.
        """
        if self.order == "interleaved":
            return [(layer, (layer + 1) * self.loops) for layer in range(self.layers_per_block)]
        return [(run, run + 1) for run in range(self.layers_per_block * self.loops)]

    @property
    def layers_per_block(self) -> int:
        return int(self.text_config.num_hidden_layers // self.loops)

    @property
    def relaxed(self) -> bool:
        """Whether any linear has adapters."""
        return any(self.component_ranks.get(component, self.rank) for component in COMPONENTS.values())

    def rank_of(self, part: str, inputs: int, outputs: int) -> int:
        """The rank of a projection's adapters, at most that of its weight [outputs, inputs]."""
        rank = self.component_ranks.get(COMPONENTS[part], self.rank)
        full = min(inputs, outputs)
        return max(1, round(rank * full)) if 0 < rank < 1 else min(int(rank), full)


import rrt_edge.model.looped_configs  # noqa: E402, F401  they register too

AutoConfig.register("rrt", RecursiveConfig, exist_ok=True)
