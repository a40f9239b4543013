"""Tensors of a GGUF file as a transformers model has them: by its names, in its order of rows, dequantised one by one.

llama.cpp turns the rows of queries and keys of some families so that neighbours rotate together, adds to Gemma's norms
what Gemma adds while running, and writes GPT-NeoX's queries, keys and values behind each other.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.model.families import family_of, head_shape, part_sizes
from rrt_edge.model.lora import join_rows
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import named

NORMS = {  # by role
    "before_attention": "attn_norm", "after_attention": "post_attention_norm", "before_mlp": "ffn_norm",
    "after_mlp": "post_ffw_norm", "q": "attn_q_norm", "k": "attn_k_norm",
}  # fmt: skip
LINEARS = {  # by the projections they hold
    ("q",): "attn_q", ("k",): "attn_k", ("v",): "attn_v", ("o",): "attn_output", ("q", "k", "v"): "attn_qkv",
    ("gate",): "ffn_gate", ("up",): "ffn_up", ("gate", "up"): "ffn_up", ("down",): "ffn_down",
}  # fmt: skip
TURNED = ("llama", "granite")  # architectures whose rows of queries and keys are turned
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROWS = 1024  # dequantised at once, which takes several times their result
IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # the config says them


@dataclass(frozen=True)
class Blocks:
    """A matrix [out, in] as it is stored: `data` uint8 [out, bytes of a row], of one of GGML's types."""

    type: str
    data: NDArray[np.uint8]


class GgufFile:
    """The parameters that a GGUF file holds; what is not known keeps its name."""

    def __init__(self, header: GgufHeader, config: PreTrainedConfig) -> None:
        self._header, self._config, self._family = header, config, family_of(config)
        self._own = {self._name(name): name for name in header.tensors if name not in NOT_WEIGHTS}

    @property
    def names(self) -> list[str]:
        return list(self._own)

    def where(self, name: str) -> Path:
        return self._header.path

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header.tensors[self._own[name]].shape

    def is_float(self, name: str) -> bool:
        """All tensors of the format are weights."""
        return True

    def kept_as(self, name: str) -> torch.dtype:
        """The type that keeps what a tensor says; blocks are kept as the float32 that they stand for."""
        return PLAIN.get(self._header.tensors[self._own[name]].type, torch.float32)

    def read(self, name: str) -> Tensor:
        """A tensor, dequantised where it is in blocks.

        Raises:
            BadInputError: its type cannot be dequantised.
        """
        own = self._own[name]
        rows, kind = self._rows(own), self._header.tensors[own].type
        if self.block_type(name) is not None:
            tensor = self._dequantised(own, rows)
        else:
            tensor = torch.from_numpy(np.array(rows)).view(PLAIN.get(kind, torch.float64))
            tensor = tensor.float() if kind == "F64" else tensor
        if name.endswith("norm.weight") and self._family.norm_offset:
            tensor = tensor.float() - self._family.norm_offset
        return tensor

    def block_type(self, name: str) -> str | None:
        """GGML's type of a matrix in blocks, or None where it is stored as floating point numbers."""
        kind = self._header.tensors[self._own[name]].type
        return None if kind in PLAIN or kind == "F64" else kind

    def blocks(self, name: str) -> Blocks | None:
        """A matrix in blocks as it is stored."""
        kind = self.block_type(name)
        return None if kind is None else Blocks(kind, self._rows(self._own[name]))

    def close(self) -> None:
        """Nothing is held: each tensor is mapped while it is read."""

    def _name(self, own: str) -> str:
        """What transformers calls a tensor."""
        family = self._family
        start, end = own.rsplit(".", 1) if "." in own else (own, "")
        outer = {
            "token_embd": f"{family.prefix}.{family.embedding}",
            "output_norm": f"{family.prefix}.{family.final_norm}",
            "output": "lm_head",
        }
        if start in outer:
            return f"{outer[start]}.{end}"
        layer = IN_LAYER.fullmatch(start)
        if layer is None:
            return own
        inner = {NORMS[role]: path for role, path in family.norms.items()}
        inner |= {LINEARS[linear.parts]: linear.path for linear in family.linears}
        return f"{family.prefix}.layers.{layer[1]}.{inner.get(layer[2], layer[2])}.{end}"

    def _rows(self, own: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, its rows in transformers' order."""
        rows = self._header.rows(own)
        heads, kv_heads, size = head_shape(self._config)
        turned = {"attn_q": heads, "attn_k": kv_heads} if self._header.architecture in TURNED else {}
        layer = IN_LAYER.fullmatch(own.rpartition(".")[0])
        part = "" if layer is None else layer[2]
        if part in turned:
            bytes_of_rows = _as_rows(rows, turned[part] * size)
            neighbours = bytes_of_rows.reshape(turned[part], size // 2, 2, -1)
            return neighbours.swapaxes(1, 2).reshape(rows.shape)
        if part == "attn_qkv" and any(linear.by_head for linear in self._family.linears):
            sizes = part_sizes(self._config)
            ends = [sizes["q"], sizes["q"] + sizes["k"]]
            parts = np.split(_as_rows(rows, ends[1] + sizes["v"]), ends)
            own_parts = {name: torch.from_numpy(np.array(part)) for name, part in zip("qkv", parts, strict=True)}
            return np.asarray(join_rows(own_parts, heads).numpy()).reshape(rows.shape)
        return rows

    def _dequantised(self, own: str, rows: NDArray[np.uint8]) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._header.tensors[own]
        numbers = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
        stored = rows.reshape(len(numbers), -1)
        try:
            for start in range(0, len(numbers), ROWS):
                some = np.array(stored[start : start + ROWS])
                numbers[start : start + ROWS] = dequantize(some, GGMLQuantizationType(tensor.number))
            return torch.from_numpy(numbers.reshape(tensor.shape))
        except NotImplementedError as error:
            raise BadInputError(
                f"{self._header.path}: {named(own)} is stored as {tensor.type}, which is not read"
            ) from error


def _as_rows(rows: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The bytes of a weight [out, ..] or of a bias [out] by row."""
    return rows.reshape(count, -1)
