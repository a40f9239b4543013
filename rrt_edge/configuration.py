"""`RecursiveConfig`: the source model's config, and how its layers are shared."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.manifest import RULES, KVRule


class RecursiveConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of a recursive model.

    Attributes:
        text_config: the config of the source model, unchanged; its `num_hidden_layers` counts the layers before
            sharing, which is also the number of KV slots (`loop * layers_per_block + layer`).
        loops: times the block is run; divides `text_config.num_hidden_layers`.
        rank: LoRA rank of each depth on every linear of the block; 0 shares without relaxation.
        init: how the block was initialised: `average`, `stepwise` or `lower`.
        gate_trained: whether the exit gate was trained; an untrained gate asks never to leave early.
        kv_rule: what a token that leaves early is to the depths it skips, as trained: `exact`, `propagate`, `latest` or
            `skip`.
        exit_threshold: the gate value calibrated for leaving early, where one was.

    Raises:
        BadInputError: `loops` does not divide the layers, `rank` is negative, or there is no such KV rule.
    """

    model_type = "rrt"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    text_config: Any = None  # a PreTrainedConfig; a dict when read from JSON
    loops: int = 2
    rank: int = 0
    init: str = "average"
    gate_trained: bool = False
    kv_rule: KVRule = "exact"
    exit_threshold: float | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        importlib.import_module("rrt_edge.modeling")  # so that AutoModelForCausalLM finds the model
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        layers = self.text_config.num_hidden_layers
        if self.loops < 1 or layers % self.loops:
            choices = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
            raise BadInputError(f"loops {self.loops} does not divide the {layers} layers; choose one of {choices}")
        if self.rank < 0:
            raise BadInputError(f"rank {self.rank} is negative; 0 shares the block without LoRA")
        if self.kv_rule not in RULES:
            raise BadInputError(f"kv_rule {self.kv_rule!r}: choose from {', '.join(RULES)}")

    @property
    def layers_per_block(self) -> int:
        return int(self.text_config.num_hidden_layers // self.loops)


AutoConfig.register("rrt", RecursiveConfig, exist_ok=True)
