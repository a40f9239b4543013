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
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export, verify
from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH
from rrt_edge.runtime.bundle.device_graphs import why_unfit
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.merged import MergedRunner
from rrt_edge.runtime.running.runner import Call, Part
from tests.checkpoints import save_tokenizer
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
    """Half of each text, three single tokens, the rest."""
    folder = made(case)
    host, seen = Host(folder / "bundle", len(TEXTS)), [np.zeros((0, 300), np.float32)] * len(TEXTS)
    fed = [0] * len(TEXTS)
    for piece in range(5):
        stops = [(len(ids) // 2, at + 1, at + 1, at + 1, len(ids))[piece] for ids, at in zip(TEXTS, fed, strict=True)]
        logits, *_ = host.run([ids[at:stop] for ids, at, stop in zip(TEXTS, fed, stops, strict=True)])
        seen = [np.concatenate(pair) for pair in zip(seen, logits, strict=True)]
        fed = [min(stop, len(ids)) for stop, ids in zip(stops, TEXTS, strict=True)]
    expected = [torch_logits(folder / "recursive", ids)[-1] for ids in TEXTS]
    cell("batch of 4", np.concatenate(seen), np.concatenate(expected))


def test_the_block_graph_equals_torch_in_pieces_and_with_a_row_at_each_depth(
    made: Callable[[str], Path], case: str, cell: Cell
) -> None:
    """Half of a text in pieces; then in each call the next token at depth 1 and the one before it a depth further."""
    folder, loops = made(case), LOOPS[case]
    manifest = Manifest.read(folder / "bundle")
    if not (folder / "bundle" / BLOCK_GRAPH).is_file():
        assert why_unfit(manifest.architecture.windows or (), manifest.architecture.head_dim)
        return
    expected, ids = torch_logits(folder / "recursive", TEXTS[0]), np.array(TEXTS[0])
    runner = BlockRunner(folder / "bundle", manifest.architecture, 1)
    cache, binding, seen = runner.new_cache(), runner.bind(), []
    for start, stop in ((0, 2), (2, 9), (9, 10), (10, 12)):
        rows = range(stop - start)
        seen.append(runner.run(binding, cache, Call(ids[start:stop], start, 1, loops, logit_rows=rows)).logits)
    cell("block", np.concatenate(seen), expected[-1, :12])

    moving: list[tuple[int, int, Any]] = []  # place, depth, state
    always, seen, theirs = np.zeros(1, np.float32), [], []
    for step in range(12, 12 + 11 + loops):
        moving = [row for row in moving if row[1] < loops]
        parts = [Part(cache, depth + 1, state, place, always) for place, depth, state in moving]
        if step < 23:
            parts.append(Part(cache, 1, ids[step : step + 1], step, always))
        if not parts:
            break
        done = runner.step(binding, parts)
        for part, outcome in zip(parts, done, strict=True):
            seen.append(outcome.logits[0])
            theirs.append(expected[part.depth - 1, part.position])
        moving = [(part.position, part.depth, outcome.hidden) for part, outcome in zip(parts, done, strict=True)]
    assert len(seen) == 11 * loops
    cell("piped", np.stack(seen), np.stack(theirs))
    runner.close()


def test_merged_adapters_equal_torch_at_every_depth_and_in_pieces(
    made: Callable[[str], Path], case: str, cell: Cell, tmp_path: Path
) -> None:
    """A text whole through each number of depths; in pieces; and its last rows first through depth 1, then the rest."""
    folder, loops = made(case), LOOPS[case]
    architecture = Manifest.read(folder / "bundle").architecture
    if why_unfit(architecture.windows or (), architecture.head_dim):
        with pytest.raises(BadInputError, match="merge-adapters does not go with this model"):
            export(folder / "recursive", tmp_path / "merged", bits=32, merge_adapters=True)
        return
    export(folder / "recursive", tmp_path / "merged", bits=32, merge_adapters=True)
    assert verify(tmp_path / "merged").ok
    expected, ids = torch_logits(folder / "recursive", TEXTS[0]), np.array(TEXTS[0])
    runner = MergedRunner(tmp_path / "merged", architecture, 1)
    binding = runner.bind()
    whole = [
        runner.run(binding, runner.new_cache(), Call(ids, 0, 1, depth, logit_rows=range(24))).logits
        for depth in range(1, loops + 1)
    ]
    cell("merged", np.stack(whole), expected)
    cache, seen = runner.new_cache(), []
    for start, stop in ((0, 2), (2, 9), (9, 10), (10, 11), (11, 12)):
        rows = range(stop - start)
        seen.append(runner.run(binding, cache, Call(ids[start:stop], start, 1, loops, logit_rows=rows)).logits)
    early = [runner.run(binding, cache, Call(ids[at : at + 1], at, 1, 1, logit_rows=(0,))) for at in range(12, 24)]
    rest = Call(np.concatenate([done.hidden for done in early]), 12, 2, loops, logit_rows=range(12))
    seen.append(runner.run(binding, cache, rest).logits)
    cell("merged pieces", np.concatenate(seen), expected[-1])
    cell("merged early", np.concatenate([done.logits for done in early]), expected[0, 12:])
    runner.close()


def test_4_bits_stay_near_torch(made: Callable[[str], Path], case: str, tmp_path: Path) -> None:
    folder = made(case)
    export(folder / "recursive", tmp_path / "bundle", bits=4)
    ours = Host(tmp_path / "bundle", 1).run([TEXTS[0]])[0][0]
    theirs = torch_logits(folder / "recursive", TEXTS[0])[-1]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9


def test_pythias_old_names_are_read(tmp_path: Path) -> None:
    random_model("gpt_neox").save_pretrained(tmp_path / "new")
    state = load_file(tmp_path / "new" / "model.safetensors")
    old = {name.replace("lm_head", "embed_out"): tensor for name, tensor in state.items()}
    for layer in range(6):
        old[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        old[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    for name in ("old", "new"):
        rrt_edge.convert(tmp_path / name, tmp_path / f"{name}-out", rank=4)
    states = [load_file(tmp_path / f"{name}-out" / "model.safetensors") for name in ("old", "new")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


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


@pytest.mark.parametrize("name", ["gemma3", "phi3-long", "gpt_neox"])
def test_bundles_of_other_families_verify(made: Callable[[str], Path], name: str) -> None:
    """Each text in its own context: of a model with two sets of frequencies, the short one."""
    folder = made(name)
    report = verify(folder / "bundle", source=str(folder / "recursive"))
    assert report.ok, report.problem
