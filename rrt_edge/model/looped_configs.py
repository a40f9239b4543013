"""Configurations of looped models of others: Ouro (arXiv 2510.25741) and Nanbeige 4.2.

They are read by these classes instead of code that comes with a checkpoint, which is never run.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from rrt_edge.model.sharing import LOOPED
from rrt_edge.runtime.errors import BadInputError

MOST_LOOPS = 64
UNKNOWN_PARTS = (  # what some models of these classes have, and no released one
    "use_sliding_window", "emb_neighbor_num", "enable_double_loop_split", "loop_share_kv", "enable_hyper_connection",
    "enable_mhc", "enable_depth_attention", "qk_layernorm", "attention_bias", "mlp_bias", "ngram_insert_all_layers",
    "insert_ngram_layer_idx",
)  # fmt: skip


class LoopedConfig(PreTrainedConfig):  # type: ignore[misc]
    """Llama's fields: transformers' own class of them cannot be imported this early."""

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 65536
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: Any = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    pretraining_tp: int | None = 1  # read by Llama's classes

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        kwargs.pop("layer_types", None)  # all of them see the whole text, and there is one for each loop
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """
        Raises:
            BadInputError: a part is asked for that is not known here, or there are no loops.
        """
        for name in UNKNOWN_PARTS:
            if value := getattr(self, name, None):
                raise BadInputError(f"config.json: {name} {value!r}: such {self.model_type} models are not supported")
        field = LOOPED[self.model_type]
        loops = getattr(self, field)
        if type(loops) is not int or not 1 <= loops <= MOST_LOOPS:
            raise BadInputError(f"config.json: {field} {loops!r}: must be a whole number from 1 to {MOST_LOOPS}")


class OuroConfig(LoopedConfig):
    """`total_ut_steps` are its loops. Exits are chosen by policies here, not by `early_exit_threshold`."""

    model_type = "ouro"

    total_ut_steps: int = 4
    early_exit_threshold: float = 1.0


class NanbeigeConfig(LoopedConfig):
    """`num_loops`, and whether the final norm is left out between them."""

    model_type = "nanbeige"

    num_loops: int = 2
    skip_loop_final_norm: bool = False


for _config in (OuroConfig, NanbeigeConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
