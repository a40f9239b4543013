"""A small random model of each family with transformers: odd sizes, grouped queries, every vector its own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None, "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SIX = range(6)
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": False},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 7},
    "mistral-full": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 4},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2", "sliding_window": 7, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0,
               "final_logit_softcapping": 3.0},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 7, "query_pre_attn_scalar": 24,
               "sliding_window_pattern": 4},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.5, "tie_word_embeddings": False, "hidden_size": 96},
    "gpt_neox-serial": {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False,
                        "attention_bias": False, "hidden_size": 96, "hidden_act": "gelu_new"},
    "phi3": {"model_type": "phi3", "head_dim": 12, "sliding_window": 7, "partial_rotary_factor": 0.5},
    "phi3-long": {"model_type": "phi3", "head_dim": 12, "original_max_position_embeddings": 64,
                  "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0,
                                      "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
                                      "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}},
    "olmo2": {"model_type": "olmo2", "tie_word_embeddings": False},
    "granite": {"model_type": "granite", "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
                "attention_multiplier": 0.1, "logits_scaling": 3.0},
}  # fmt: skip


def random_model(case: str, **changes: Any) -> PreTrainedModel:
    """A model whose norms and biases are random as well, so that none can be forgotten; attention is eager."""
    fields = {**COMMON, **CASES[case], **changes}
    if fields["model_type"] == "gpt_neox":  # has neither
        del fields["num_key_value_heads"], fields["head_dim"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()
