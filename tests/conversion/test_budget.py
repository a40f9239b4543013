"""`convert --parameters`: ranks by what each brings back, within a share of the source's parameters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import rrt_edge
from rrt_edge.conversion.budget import STEP, Curve, spend
from tests.checkpoints import save_tokenizer
from tests.conversion.test_by_data import data, inputs, token_ids  # noqa: F401  a fixture
from tests.families import CASES, random_model
from tests.program import run

LAYERS, LOOPS = 12, 3
COMPONENTS = {
    "attention": ("self_attn.q_proj", "self_attn.o_proj"),
    "kv": ("self_attn.k_proj", "self_attn.v_proj"),
    "ffn": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


def best(gains: dict[str, np.ndarray], costs: dict[str, np.ndarray], allowed: float) -> float:
    """The most that whole steps bring back for that many numbers, by trying all."""
    steps = [range(0, len(gain) + STEP, STEP) for gain in gains.values()]
    found = 0.0
    for ranks in itertools.product(*steps):
        chosen = list(zip(ranks, gains.values(), costs.values(), strict=True))
        if sum(cost[:rank].sum() for rank, _, cost in chosen) <= allowed:
            found = max(found, sum(gain[:rank].sum() for rank, gain, _ in chosen))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_nothing_brings_back_more_for_what_is_allowed(seed: int) -> None:
    random = np.random.default_rng(seed)
    gains = {name: np.sort(random.random(int(random.integers(9, 70))))[::-1] for name in "abc"}
    costs = {name: np.full(len(gain), int(random.integers(50, 900))) for name, gain in gains.items()}
    made = {name: Curve(torch.tensor(gains[name].copy()), torch.tensor(costs[name])) for name in gains}
    allowed = int(random.integers(1, sum(cost.sum() for cost in costs.values())))
    ranks = spend(made, allowed)
    assert sum(costs[name][:rank].sum() for name, rank in ranks.items()) <= allowed
    assert sum(gains[name][:rank].sum() for name, rank in ranks.items()) == pytest.approx(best(gains, costs, allowed))


@pytest.mark.parametrize("with_data", [False, True])
def test_ranks_are_those_that_bring_back_most_of_the_models_layers(
    source: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    with_data: bool,
) -> None:
    options = {"data": data} if with_data else {}
    report = rrt_edge.convert(source, tmp_path / "out", loops=LOOPS, parameters=0.9, **options)
    theirs, ranks = LlamaForCausalLM.from_pretrained(source), report.component_ranks
    texts = token_ids(source, data)
    gains, costs = {}, {}
    for component, paths in COMPONENTS.items():
        gains[component], costs[component] = np.zeros(10_000), np.zeros(10_000)
        for path, layer in itertools.product(paths, range(LAYERS)):
            weights = [
                theirs.model.layers[n].get_submodule(path).weight.detach().double().numpy() for n in range(LAYERS)
            ]
            own, shared = weights[layer], np.mean(weights[layer % 4 :: 4], axis=0)
            root = np.eye(own.shape[1])
            if with_data:
                x = inputs(theirs, f"model.layers.{layer}.{path}", texts)
                squares = x.T @ x
                root = np.linalg.cholesky(squares + 0.01 * squares.diagonal().mean() * np.eye(len(squares)))
            shares = np.linalg.svd((own - shared) @ root, compute_uv=False) ** 2 / np.square(own @ root).sum()
            gains[component][: len(shares)] += shares
            costs[component][: len(shares)] += sum(own.shape)
        size = np.count_nonzero(costs[component])
        gains[component], costs[component] = gains[component][:size], costs[component][:size]
    count, whole = report.parameters, sum(parameter.numel() for parameter in theirs.parameters())
    assert 0.85 * whole < count.total <= 0.9 * whole
    found, spent = (sum(of[name][:rank].sum() for name, rank in ranks.items()) for of in (gains, costs))
    allowed = 0.9 * whole - (count.total - spent)
    assert found == pytest.approx(best(gains, costs, allowed), rel=1e-4) and len(set(ranks.values())) > 1
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ours.config.component_ranks == ranks
    assert (
        sum(parameter.numel() for name, parameter in ours.named_parameters() if "exit_gate" not in name) == count.total
    )


@pytest.mark.parametrize("case", CASES)
def test_every_family_takes_a_budget(case: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    theirs = random_model(case)
    theirs.save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", theirs.config.vocab_size)
    report = rrt_edge.convert(tmp_path / "source", tmp_path / "out", loops=2, parameters=0.9, data=data)
    source = report.parameters.source_non_embedding + report.parameters.total - report.parameters.non_embedding
    assert any(report.component_ranks.values()) and report.parameters.total <= 0.9 * source


def test_the_command_says_which_ranks_it_chose(source: Path, tmp_path: Path) -> None:
    arguments = ("convert", source, tmp_path / "out", "--loops", LOOPS, "--parameters", 0.9)
    told, record = run(*arguments), run(*arguments, "--json")
    ranks = json.loads(record.stdout)["component_ranks"]
    assert told.returncode == 0 and ", ".join(f"{name} {rank}" for name, rank in ranks.items()) in told.stdout
    refused = run("convert", source, tmp_path / "other", "--parameters", 0.2)
    assert refused.returncode == 2 and "allow more, or take more loops" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "other").exists()
