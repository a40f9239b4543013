"""Looped models of others, written anew from their formulas in plain torch, and small random checkpoints of them.

Ouro: https://arxiv.org/abs/2510.25741; Nanbeige 4.2: its final norm stands in the loop, unless its config skips that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3, "hidden_act": "silu",
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "rope_scaling": None, "bos_token_id": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "ouro": {
        "model_type": "ouro", "architectures": ["OuroForCausalLM"], "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "total_ut_steps": 4,
        "early_exit_threshold": 1.0, "eos_token_id": 0, "sliding_window": None, "use_sliding_window": False,
        "layer_types": ["full_attention"] * 3, "max_window_layers": 3,
    },
    "nanbeige": {
        "model_type": "nanbeige", "architectures": ["NanbeigeForCausalLM"], "num_attention_heads": 6, "head_dim": 16,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 7e7, "num_loops": 2, "eos_token_id": 1,
        "skip_loop_final_norm": False, "loop_loss_weights": [], "attention_bias": False, "mlp_bias": False,
    },
}  # fmt: skip
KINDS["ouro-12"] = {**KINDS["ouro"], "head_dim": 12}  # runs in the loop graph: no whole eights
KINDS["nanbeige-skip"] = {**KINDS["nanbeige"], "skip_loop_final_norm": True}


def write_looped(folder: Path, kind: str, **changes: Any) -> Path:
    """A random checkpoint with a tokenizer, whose token 1 ends replies; keyword arguments change its config."""
    fields = {**SIZES, **KINDS[kind], **changes}
    hidden, inner, size = fields["hidden_size"], fields["intermediate_size"], fields["head_dim"]
    q, kv = fields["num_attention_heads"] * size, fields["num_key_value_heads"] * size
    matrices = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["input_layernorm_2", "post_attention_layernorm_2"] if fields["model_type"] == "ouro" else []
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    vocabulary = fields["vocab_size"]
    tensors = {"model.embed_tokens.weight": numbers(vocabulary, hidden)}
    for layer in range(fields["num_hidden_layers"]):
        for name, shape in matrices.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = numbers(*shape) * shape[1] ** -0.5
        for name in norms:
            mean = 0.4 if name.endswith("_2") else 1.0
            tensors[f"model.layers.{layer}.{name}.weight"] = mean + 0.3 * numbers(hidden)
    tensors["model.norm.weight"] = 1 + 0.3 * numbers(hidden)
    tensors["lm_head.weight"] = numbers(vocabulary, hidden) * hidden**-0.5
    if fields["model_type"] == "ouro":
        tensors["model.early_exit_gate.weight"] = 0.25 * numbers(1, hidden)
        tensors["model.early_exit_gate.bias"] = torch.tensor([-0.5])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder, vocabulary)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@torch.no_grad()
def reference(folder: Path, ids: list[int]) -> tuple[Tensor, Tensor]:
    """The logits [loops, S, V] of a text after each loop, and the probabilities [loops, S] of having left by then.

    Where there is no gate these are 0, and 1 after the last loop.
    """
    fields, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    loops = fields.get("total_ut_steps") or fields["num_loops"]
    final, inside = tensors["model.norm.weight"], not fields.get("skip_loop_final_norm")
    state, logits, staying = tensors["model.embed_tokens.weight"][ids], [], torch.ones(len(ids))
    left = torch.zeros(loops, len(ids))
    for loop in range(loops):
        for layer in range(fields["num_hidden_layers"]):
            state = _layer(fields, tensors, f"model.layers.{layer}", state)
        normed = _norm(state, final, fields)
        state = normed if inside else state
        logits.append(normed @ tensors["lm_head.weight"].T)
        if "model.early_exit_gate.weight" in tensors:
            hazard = torch.sigmoid(
                normed @ tensors["model.early_exit_gate.weight"][0] + tensors["model.early_exit_gate.bias"]
            )
            staying = staying * (1 - hazard)
            left[loop] = 1 - staying
    left[-1] = 1
    return torch.stack(logits), left


def _layer(fields: dict[str, Any], tensors: dict[str, Tensor], name: str, state: Tensor) -> Tensor:
    def norm(x: Tensor, role: str) -> Tensor:
        weight = tensors.get(f"{name}.{role}.weight")
        return x if weight is None else _norm(x, weight, fields)

    def linear(x: Tensor, path: str) -> Tensor:
        return x @ tensors[f"{name}.{path}.weight"].T

    heads, kv_heads, size = (fields[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    length, x = len(state), norm(state, "input_layernorm")
    q, k, v = (linear(x, f"self_attn.{part}_proj").view(length, -1, size).transpose(0, 1) for part in "qkv")
    powers = torch.arange(0, size, 2, dtype=torch.float64) / size
    angles = (torch.arange(length, dtype=torch.float64)[:, None] / fields["rope_theta"] ** powers).repeat(1, 2)
    q, k = (_rotated(each, angles) for each in (q, k))
    k, v = (each.repeat_interleave(heads // kv_heads, 0) for each in (k, v))
    scores = q @ k.transpose(1, 2) / size**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    state = state + norm(linear(mixed.transpose(0, 1).reshape(length, -1), "self_attn.o_proj"), "input_layernorm_2")
    x = norm(state, "post_attention_layernorm")
    update = linear(torch.nn.functional.silu(linear(x, "mlp.gate_proj")) * linear(x, "mlp.up_proj"), "mlp.down_proj")
    return state + norm(update, "post_attention_layernorm_2")


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * angles.cos().float() + torch.cat([-second, first], -1) * angles.sin().float()


def _norm(x: Tensor, weight: Tensor, fields: dict[str, Any]) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + fields["rms_norm_eps"]) * weight
