"""Every family's graph against its torch model, and that against the source: whole, token by token, in chunks, batched.

Run alone, it prints a table of the largest errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export
from tests.conftest import save_tokenizer
from tests.families import CASES, random_model
from tests.host import Host

LOOPS = {case: 2 if case == "gemma2" else 3 for case in CASES}  # gemma2: the layers that share differ in window
RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(2, 300, length).tolist() for length in (24, 13, 19, 5)]  # past the windows, which are 7
Cell = Callable[[str, np.ndarray, np.ndarray], None]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By case: a folder with the source, its conversion at full rank, one at rank 4, and the bundle of that."""
    folders: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in folders:
            folder = folders[case] = tmp_path_factory.mktemp(case)
            random_model(case).save_pretrained(folder / "source")
            save_tokenizer(folder / "source", 300)
            ranks = {"component_ranks": {"kv": 2}, "rank": 4}
            rrt_edge.convert(folder / "source", folder / "full", loops=LOOPS[case], rank=10_000, own_vectors=True)
            own = sorted(CASES).index(case) % 2 == 0
            rrt_edge.convert(folder / "source", folder / "recursive", loops=LOOPS[case], own_vectors=own, **ranks)
            export(folder / "recursive", folder / "bundle", bits=32)
        return folders[case]

    return make


@pytest.fixture
def cell(case: str, record_property: Callable[[str, Any], None]) -> Cell:
    """Compares, and leaves the largest error for the table."""

    def compare(column: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        error = float(np.abs(ours - theirs).max())
        record_property("family_matrix", (case, column, error))
        assert error < 1e-4

    return compare


def torch_logits(folder: Path, ids: list[int], **options: Any) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    depths = {"output_depths": True} if isinstance(model, rrt_edge.RecursiveForCausalLM) else {}
    with torch.no_grad():
        out = model(torch.tensor([ids]), **depths)
    return torch.cat(out.depth_logits if depths else (out.logits,)).numpy()  # [depths, S, V]


def test_torch_equals_the_source(made: Callable[[str], Path], case: str, cell: Cell) -> None:
    folder = made(case)
    theirs = torch_logits(folder / "source", TEXTS[0], attn_implementation="eager")
    cell("torch", torch_logits(folder / "full", TEXTS[0])[-1:], theirs)


def test_the_graph_equals_torch_at_every_depth(made: Callable[[str], Path], case: str, cell: Cell) -> None:
    folder = made(case)
    expected = torch_logits(folder / "recursive", TEXTS[0])
    ours = [Host(folder / "bundle", 1).run([TEXTS[0]], last=depth)[0][0] for depth in range(1, LOOPS[case] + 1)]
    cell("graph", np.stack(ours), expected)


@pytest.mark.parametrize("column, sizes", [("decode", [1] * 24), ("chunked", [2, 9, 1, 5, 7])])
def test_pieces_equal_the_whole(
    made: Callable[[str], Path], case: str, cell: Cell, column: str, sizes: list[int]
) -> None:
    folder = made(case)
    host, start, seen = Host(folder / "bundle", 1), 0, []
    for size in sizes:
        seen.append(host.run([TEXTS[0][start : start + size]])[0][0])
        start += size
    cell(column, np.concatenate(seen), torch_logits(folder / "recursive", TEXTS[0])[-1])


def test_a_batch_of_unequal_lengths_equals_its_texts(made: Callable[[str], Path], case: str, cell: Cell) -> None:
    folder = made(case)
    host = Host(folder / "bundle", len(TEXTS))
    first, _, _, _ = host.run([ids[: len(ids) // 2] for ids in TEXTS])
    second, _, _, _ = host.run([ids[len(ids) // 2 :] for ids in TEXTS])
    expected = [torch_logits(folder / "recursive", ids)[-1] for ids in TEXTS]
    cell(
        "batch of 4",
        np.concatenate([*first, *second]),
        np.concatenate(
            [logits[: len(logits) // 2] for logits in expected] + [logits[len(logits) // 2 :] for logits in expected]
        ),
    )


def test_a_longer_context_rotates_by_its_own_frequencies(made: Callable[[str], Path]) -> None:
    folder = made("phi3-long")
    ids = RNG.integers(2, 300, 80).tolist()  # beyond original_max_position_embeddings, 64
    host, seen = Host(folder / "bundle", 1), []
    host.long = {"long_context": np.array(True)}
    for start in range(0, 80, 16):
        seen.append(host.run([ids[start : start + 16]])[0][0])
    expected = torch_logits(folder / "recursive", ids)[-1]
    assert np.abs(np.concatenate(seen) - expected).max() < 1e-4
    assert np.abs(Host(folder / "bundle", 1).run([ids])[0][0] - expected).max() > 1e-2
