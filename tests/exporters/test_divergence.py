"""What rounding is said to cost is what it costs: the divergence that torch finds with each kind of matrix rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.exporters.divergence import PIECE_TOKENS, divergences, pieces_of
from rrt_edge.exporters.units import UNITS
from rrt_edge.quantisation.blocks import dequantize, quantize
from rrt_edge.quantisation.plan import Bits
from tests.families import random_model

FOUR = Bits(4, 4, 4, 4)
slow = partial(pytest.param, marks=pytest.mark.slow)
PATHS = {
    "qk": ("self_attn.q_proj", "self_attn.k_proj"), "v": ("self_attn.v_proj",), "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",),
}  # fmt: skip


def random_texts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, 4 * PIECE_TOKENS + 5).tolist() for _ in range(16)]


@contextmanager
def rounded(matrices: list[nn.Parameter]) -> Iterator[None]:
    kept = [matrix.detach().clone() for matrix in matrices]
    for matrix in matrices:
        matrix.data = torch.from_numpy(dequantize(quantize(matrix.detach().numpy(), 4)))
    yield
    for matrix, own in zip(matrices, kept, strict=True):
        matrix.data = own


@torch.no_grad()
def log_probabilities(model: rrt_edge.RecursiveForCausalLM, texts: list[list[int]]) -> Tensor:
    """[depths, texts, S, V]"""
    depths = [
        model(torch.tensor(texts[start : start + 16]), output_depths=True).depth_logits for start in (0, 16, 32, 48)
    ]
    return torch.cat([torch.stack(some) for some in depths], dim=1).log_softmax(-1)


@pytest.mark.parametrize(
    ("case", "loops", "changes"),
    [
        ("llama", 2, {"hidden_size": 96, "num_hidden_layers": 4}),
        slow("gemma2", 1, {"hidden_size": 96, "num_hidden_layers": 2}),  # scales the embedding, soft caps the logits
        slow("granite", 1, {"hidden_size": 96, "num_hidden_layers": 2}),  # scales what layers add, and the logits
    ],
)
def test_every_kind_of_matrix_costs_what_torch_finds(
    tmp_path: Path, case: str, loops: int, changes: dict[str, int]
) -> None:
    random_model(case, **changes).save_pretrained(tmp_path / "source")
    rrt_edge.convert(tmp_path / "source", tmp_path / "made", loops=loops)
    texts = random_texts()
    with closing(Checkpoint(tmp_path / "made")) as checkpoint:
        found = divergences(checkpoint, texts, FOUR, torch.float32)
    model = rrt_edge.RecursiveForCausalLM.from_pretrained(tmp_path / "made", attn_implementation="eager").eval()
    pieces = [list(piece) for piece in pieces_of(texts)]
    exact = log_probabilities(model, pieces)

    def cost(matrices: list[nn.Parameter]) -> float:
        with rounded(matrices):
            off = log_probabilities(model, pieces)
        return float((exact.exp() * (exact - off)).sum(-1).mean(dim=(1, 2)).sum())

    kinds = {
        name: [layer.get_parameter(f"{path}.weight") for layer in model.model.block for path in PATHS[name]]
        for name in UNITS
    }
    for name, matrices in kinds.items():
        ours = sum(cost for unit, cost in found.items() if unit.endswith(f".{name}"))
        assert 0.6 < ours / cost(matrices) < 1.6, name
    outside = {"embedding": model.model.embed_tokens.weight}
    if not model.config.text_config.tie_word_embeddings:
        outside["head"] = model.lm_head.weight
    assert set(found) - {unit for unit in found if "." in unit} == set(outside)
    for name, matrix in outside.items():
        assert 0.6 < found[name] / cost([matrix]) < 1.6, name


def test_adapters_count_and_nothing_is_random(tmp_path: Path) -> None:
    random_model("phi3", hidden_size=96, head_dim=16, num_hidden_layers=4).save_pretrained(tmp_path / "source")
    rrt_edge.convert(tmp_path / "source", tmp_path / "made", loops=2, rank=4)
    with closing(Checkpoint(tmp_path / "made")) as checkpoint:
        once, again = (divergences(checkpoint, random_texts()[:4], FOUR, torch.float32) for _ in range(2))
    assert once == again and once["lora"] > 0 and once["0.qk"] > 0 and once["1.v"] > 0


def test_short_texts_are_pieces_too() -> None:
    assert pieces_of([[5, 6], [7, 8, 9]]) == [[7, 8, 9]]
    assert len(pieces_of(random_texts())) == 64 == len(pieces_of(random_texts())[0])
