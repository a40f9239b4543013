"""Conversion that knows the data: adapters fitted to the layers' output on texts, against plain torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import rrt_edge
from rrt_edge.model.sharing import Order
from rrt_edge.model.text import encode_text
from tests.checkpoints import save_tokenizer
from tests.families import CASES, random_model
from tests.program import run

LAYERS, LOOPS, RANK = 12, 3, 4
GROUPS = (  # linears with one input, in the order in which they run
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "home", "fast"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, 40)) for _ in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def token_ids(folder: Path, data: Path) -> list[Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    return [torch.tensor([encode_text(tokenizer, text)["input_ids"]]) for text in texts]


def inputs(model: LlamaForCausalLM, path: str, texts: list[Tensor]) -> np.ndarray:
    """[tokens, in]: what reaches a linear of the whole model."""
    rows: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    with torch.no_grad():
        for ids in texts:
            model(ids)
    hook.remove()
    return torch.cat(rows).double().numpy()


ORDERS = {"consecutive": range(LAYERS), "interleaved": (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)}


def fitted(source: Path, texts: list[Tensor], order: Sequence[int]) -> LlamaForCausalLM:
    """The unshared model that conversion stands for, made from the formulas of the docs with whole models."""
    theirs, ours = (LlamaForCausalLM.from_pretrained(source) for _ in range(2))
    for layer, number in enumerate(order):
        ours.model.layers[layer].load_state_dict(theirs.model.layers[number].state_dict())
    for layer, number in enumerate(order):
        for group in GROUPS:
            source_inputs = inputs(theirs, f"model.layers.{number}.{group[0]}", texts)
            own = inputs(ours, f"model.layers.{layer}.{group[0]}", texts)
            squares = own.T @ own
            squares += 0.01 * squares.diagonal().mean() * np.eye(len(squares))
            guess = (source_inputs - own).T @ own @ np.linalg.inv(squares)
            root = np.linalg.cholesky(squares)
            for path in group:
                tied = [theirs.model.layers[n].get_submodule(path).weight for n in order[layer % 4 :: 4]]
                weight = theirs.model.layers[number].get_submodule(path).weight.detach().double().numpy()
                shared = (sum(tied) / LOOPS).detach().double().numpy()
                u, s, vt = np.linalg.svd((weight - shared + 0.7 * weight @ guess) @ root, full_matrices=False)
                adapter = (u[:, :RANK] * s[:RANK]) @ vt[:RANK] @ np.linalg.inv(root)
                linear = ours.model.layers[layer].get_submodule(path)
                linear.weight = nn.Parameter(torch.from_numpy(shared + adapter).float())
    return ours


@pytest.mark.parametrize("order", ORDERS)
def test_adapters_are_those_that_lose_least_of_the_output(
    source: Path, data: Path, tmp_path: Path, order: Order
) -> None:
    report = rrt_edge.convert(source, tmp_path / "out", loops=LOOPS, rank=RANK, data=data, order=order)
    texts = token_ids(source, data)
    expected = fitted(source, texts, ORDERS[order])
    ours, theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), LlamaForCausalLM.from_pretrained(source)
    with torch.no_grad():
        torch.testing.assert_close(ours(texts[0]).logits, expected(texts[0]).logits, atol=2e-3, rtol=0)
    assert ours.config.own_vectors and ours.config.lora_init == report.lora_init == "output"
    assert (report.texts, report.tokens) == (12, sum(ids.shape[1] for ids in texts))

    # What the table says of the last layer's last linear, by definition.
    path = "model.layers.11.mlp.down_proj"
    own = inputs(expected, path, texts)
    lost = (theirs.get_submodule(path).weight - expected.get_submodule(path).weight).detach().double().numpy()
    guess = np.linalg.lstsq(own, inputs(theirs, path, texts) - own, rcond=None)[0].T
    weight = theirs.get_submodule(path).weight.detach().double().numpy()
    share = np.square((lost + 0.7 * weight @ guess) @ own.T).sum() / np.square(weight @ own.T).sum()
    row = {row.projection: row for row in report.output_errors}["down"]
    assert row.worst >= row.error > 0 and row.worst >= 0.8 * share


def test_it_starts_nearer_to_the_source_than_the_svd_of_the_weights(source: Path, data: Path, tmp_path: Path) -> None:
    texts = token_ids(source, data)
    theirs = LlamaForCausalLM.from_pretrained(source)

    def distance(folder: Path) -> float:
        ours = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            pairs = [(ours(ids).logits.log_softmax(-1), theirs(ids).logits.log_softmax(-1)) for ids in texts]
        return float(sum((their.exp() * (their - own)).sum() for own, their in pairs))

    first = tmp_path / "first.jsonl"
    first.write_text("".join(data.read_text().splitlines(keepends=True)[:6]))
    rrt_edge.convert(source, tmp_path / "data", loops=LOOPS, rank=8, data=first)
    rrt_edge.convert(source, tmp_path / "svd", loops=LOOPS, rank=8, own_vectors=True)
    assert distance(tmp_path / "data") < 0.8 * distance(tmp_path / "svd")


@pytest.mark.parametrize("case", CASES)
def test_full_rank_is_the_source_in_every_family(case: str, data: Path, tmp_path: Path) -> None:
    theirs = random_model(case)
    theirs.save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", theirs.config.vocab_size)
    rrt_edge.convert(tmp_path / "source", tmp_path / "out", loops=2, rank=10_000, data=data)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(2, 300, (2, 19), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=2e-3, rtol=0)


def test_vectors_may_stay_shared_and_parts_without_adapters(source: Path, data: Path, tmp_path: Path) -> None:
    report = rrt_edge.convert(
        source, tmp_path / "out", loops=3, rank=0, component_ranks={"ffn": 2}, data=data, own_vectors=False
    )
    assert [row.projection for row in report.output_errors] == ["gate", "up", "down"] and not report.kept
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert "model.block.0.input_layernorm.weight" in names and "model.block.0.self_attn.q_proj.lora_A" not in names


def test_texts_are_cut_and_read_to_a_number_of_tokens(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "hello " * 300}, {"role": "assistant", "content": "well " * 300}]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(3)))
    for tokens, texts in ((700, 2), (512, 1), (100, 1)):
        report = rrt_edge.convert(source, tmp_path / "out", loops=3, rank=1, data=path, data_tokens=tokens)
        assert (report.tokens, report.texts) == (tokens, texts)


def strangers(folder: Path) -> Iterator[tuple[dict, str]]:
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"text": "well"}\n{"txt": "no"}\n')
    yield {"data": folder / "nowhere.jsonl"}, "nowhere.jsonl: no such data file"
    yield {"data": folder / "empty.jsonl"}, "empty.jsonl: the data file is empty"
    yield {"data": folder / "broken.jsonl"}, "broken.jsonl, line 2: not a record"
    yield {"data": folder / "data.csv"}, "data.csv: no such data file"
    yield {"data": folder / "empty.jsonl", "rank": 0}, "rank 0: with data it is the adapters that are fitted"
    yield {"data": folder / "empty.jsonl", "lora_init": "svd"}, "lora-init svd: goes without data"
    yield {"lora_init": "output"}, "lora-init output: needs texts; give them with --data"
    yield {"data": folder / "empty.jsonl", "data_tokens": 0}, "data-tokens 0: must be"


def test_wrong_data_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    for options, message in strangers(tmp_path):
        with pytest.raises(rrt_edge.BadInputError, match=message):
            rrt_edge.convert(source, tmp_path / "out", **{"loops": 3, "rank": 2, **options})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "empty.jsonl"]


def test_a_missing_or_foreign_tokenizer_is_told(make_source: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    bare = make_source()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    with pytest.raises(rrt_edge.BadInputError, match="--data needs the model's tokenizer"):
        rrt_edge.convert(bare, tmp_path / "out", loops=3, rank=2, data=data)
    small = make_source(vocab_size=200)
    save_tokenizer(small, 300)
    with pytest.raises(rrt_edge.BadInputError, match="has a vocabulary of 200"):
        rrt_edge.convert(small, tmp_path / "out", loops=3, rank=2, data=data)


def test_the_command_says_what_is_lost_and_warns_of_size(source: Path, data: Path, tmp_path: Path) -> None:
    ended = run("convert", source, tmp_path / "out", "--loops", 3, "--rank", 70, "--data", data)
    assert ended.returncode == 0, ended.stderr
    assert "12 texts" in ended.stdout and "energy of the output on the texts that is lost" in ended.stdout
    assert "Warning:" in ended.stderr and "are not fewer than the source's" in ended.stderr
