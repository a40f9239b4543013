"""The exported graph against torch: every depth, whole prompts, chunks, single tokens, batches, the exit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from rrt_edge.exporters import export
from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.block_contract import block_inputs, block_outputs
from rrt_edge.runtime.bundle.contract import (
    INPUTS,
    LONG_CONTEXT,
    PROPAGATING_INPUTS,
    STAYED,
    GraphTensor,
    inputs_of,
    outputs_of,
    past_length,
)
from rrt_edge.runtime.bundle.looping import Looping
from tests.checkpoints import save_tokenizer
from tests.families import random_model
from tests.host import Host

RNG = np.random.default_rng(5)
HEADS = (
    "input", "output", "kept at 8 bits", "where layers differ", "with two sets of frequencies",
    "where the gate is a hazard",
)  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs" / "graph.md"


def documented() -> dict[str, dict[str, tuple[int, str]]]:
    """What docs/graph.md says: by table and name, the rank and the type."""
    text = DOCS.read_text(encoding="utf-8").partition("## The block graph")[0]
    told: dict[str, dict[str, tuple[int, str]]] = {}
    tables, table = iter(("input", "output", "propagation", "8 bits", "groups", "long", "hazard")), ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in HEADS:
            table = next(tables)
        elif line.startswith("| `"):
            kind, shape = cells[1].split(" ", 1)
            dimensions = shape[1 : shape.index("]")]
            rank = dimensions.count(",") + 1 if dimensions else 0
            for name in cells[0].replace("`", "").split(", "):
                told.setdefault(table, {})[name] = rank, f"tensor({kind})"
    return told


@pytest.mark.slow
@pytest.mark.parametrize("kv_bits", [32, 8])
@pytest.mark.parametrize("rule", ["exact", "propagate"])
def test_the_graph_is_the_one_the_docs_tell_of(recursive: Path, tmp_path: Path, rule: str, kv_bits: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive)
    model.config.kv_rule = rule
    model.save_pretrained(tmp_path / "checkpoint")
    shutil.copy(recursive / "tokenizer.json", tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", bits=32, kv_bits=kv_bits)
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "model.onnx"))
    pasts = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["architecture"]["pasts"]

    tables = documented()
    told = {"input": tables["input"], "output": tables["output"]}
    if rule == "propagate":
        told["input"] |= tables["propagation"]
    if kv_bits == 8:
        for name, kind in tables["8 bits"].items():
            told["input" if name.startswith("past") else "output"][name] = kind
    for name in [name for name in told["input"] if name.endswith(".p.l")]:
        kind = told["input"].pop(name)
        for past in range(1, pasts + 1):
            told["input"] |= {f"{name[:-4]}.{past}.{layer}": kind for layer in range(4)}
    assert {value.name: (len(value.shape), value.type) for value in session.get_inputs()} == told["input"]
    assert {value.name: (len(value.shape), value.type) for value in session.get_outputs()} == told["output"]


@pytest.mark.parametrize("case, table", [("gemma2", "groups"), ("phi3-long", "long")])
def test_windows_and_long_contexts_are_in_the_docs_too(case: str, table: str, tmp_path: Path) -> None:
    random_model(case).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    export(tmp_path / "source", tmp_path / "bundle", bits=32, loops=3)
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "model.onnx"))
    found = {value.name: (len(value.shape), value.type) for value in session.get_inputs()}
    names = {name for name in found if not name.startswith(("past_key", "past_value"))}
    told = documented()
    more = {name.replace(".g", ".1"): kind for name, kind in told[table].items()}
    assert names == {name for name in told["input"] if not name.endswith(".p.l")} | set(more)
    assert {name: found[name] for name in more} == more


def ranks(*tensors: GraphTensor) -> dict[str, tuple[int, str]]:
    return {tensor.name: (len(tensor.shape), tensor.onnx_type) for tensor in tensors}


def test_the_docs_and_the_contract_name_the_same_tensors() -> None:
    tables = documented()
    shape = Architecture("llama", 2, 1, 0, 8, 2, 1, 4, 9, 16, pasts=2, kv_bits=32)
    pasts = [name for name in tables["input"] if name.endswith(".p.l")]
    assert ranks(*INPUTS, past_length(0)) == {
        name: tables["input"][name] for name in tables["input"] if name not in pasts
    }
    assert ranks(*PROPAGATING_INPUTS) == tables["propagation"] and ranks(LONG_CONTEXT) == tables["long"]
    assert ranks(STAYED) == tables["hazard"]
    assert ranks(past_length(1)) == {name.replace(".g", ".1"): kind for name, kind in tables["groups"].items()}
    assert ranks(*outputs_of(shape)) == tables["output"]
    for bits, table in (
        (32, {name: tables["input"][name] for name in pasts} | tables["output"]),
        (8, tables["8 bits"]),
    ):
        of_bits = dataclasses.replace(shape, kv_bits=bits)
        planes = [tensor for tensor in inputs_of(of_bits, False) if tensor.name.endswith(".1.0")]
        planes += [tensor for tensor in outputs_of(of_bits) if tensor.name.startswith("new_")]
        documented_planes = {name for name in table if name.startswith(("past_key", "past_value", "new"))}
        assert ranks(*planes) == {name.replace(".p.l", ".1.0"): table[name] for name in documented_planes}


def torch_logits(folder: Path, ids: list[int]) -> list[np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return [logits[0].numpy() for logits in model(torch.tensor([ids]), output_depths=True).depth_logits]


@pytest.mark.slow
@pytest.mark.parametrize("loops, rank", [(1, 0), (2, 0), (2, 4), (3, 4), (4, 3)])
@pytest.mark.parametrize("lengths", [[9], [9, 4, 7, 1]])
def test_every_depth_equals_torch(
    make_recursive: Callable[..., Path], tmp_path: Path, loops: int, rank: int, lengths: list[int]
) -> None:
    folder = make_recursive(loops=loops, rank=rank)
    export(folder, tmp_path / "bundle", bits=32)
    ids = [RNG.integers(2, 300, length).tolist() for length in lengths]
    expected = [torch_logits(folder, row) for row in ids]
    for depth in range(1, loops + 1):
        logits, _, gate, exit_depth = Host(tmp_path / "bundle", len(ids)).run(ids, last=depth)
        assert len(gate) == depth and exit_depth.tolist() == [depth] * len(ids)
        for ours, theirs in zip(logits, expected, strict=True):
            np.testing.assert_allclose(ours, theirs[depth - 1], atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_chunks_and_single_tokens_equal_the_whole(bundle: Path, recursive: Path, batch: int) -> None:
    ids = [RNG.integers(2, 300, length).tolist() for length in (20, 13, 17, 9)[:batch]]
    expected = [torch_logits(recursive, row)[-1] for row in ids]
    host, seen = Host(bundle, batch), [np.zeros((0, 300), np.float32)] * batch
    for start, stop in [(0, 4), (4, 5), (5, 6), (6, 9)]:
        logits, *_ = host.run([row[start:stop] for row in ids])
        seen = [np.concatenate(pair) for pair in zip(seen, logits, strict=True)]
    for ours, theirs in zip(seen, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[:9], atol=1e-4)


def test_gate_equals_torch(bundle: Path, recursive: Path) -> None:
    ids = RNG.integers(2, 300, 12).tolist()
    model = AutoModelForCausalLM.from_pretrained(recursive)
    with torch.no_grad():
        theirs = torch.sigmoid(model(torch.tensor([ids])).gate_logits[0]).numpy()
    _, _, gate, _ = Host(bundle, 1).run([ids])
    np.testing.assert_allclose(gate[:2, 0].T, theirs, atol=1e-5)
    assert (gate[2] == 1).all()


def test_a_batch_leaves_as_its_sequences_would_alone(bundle: Path) -> None:
    ids = [RNG.integers(2, 300, length).tolist() for length in (5, 8, 3, 6, 4, 7)]
    alone = [Host(bundle, 1).run([row], threshold=0.5) for row in ids]
    logits, _, _, exit_depth = Host(bundle, len(ids)).run(ids, threshold=0.5)
    depths = [int(one[3][0]) for one in alone]
    assert exit_depth.tolist() == depths and len(set(depths)) > 1
    for together, one in zip(logits, alone, strict=True):
        np.testing.assert_allclose(together, one[0][0], atol=1e-4)


def test_plain_onnxruntime_runs_the_graph_and_threshold_0_leaves_after_loop_1(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    feeds = {
        value.name: np.zeros([1 if isinstance(n, str) else n for n in value.shape], np.float32)
        for value in session.get_inputs()
    }
    feeds |= {name: array[:, :, :0] for name, array in feeds.items() if name.startswith(("past_key", "past_value"))}
    feeds |= {
        "input_ids": np.array([[5, 6, 7]]),
        "hidden": feeds["hidden"][:, :0],
        "row_depth": np.ones((1, 3), np.int64),
    }
    feeds |= {
        "position_ids": np.arange(3)[None],
        "first": np.array(1),
        "last": np.array(3),
        "logit_rows": np.array([2]),
    }
    feeds |= {"slot_rows": np.zeros(0, np.int64), "row_threshold": np.zeros(0, np.float32)}
    feeds |= {"past_length": feeds["past_length"].astype(np.int64), "threshold": np.array(0, np.float32)}
    for threshold, depth in ((0.0, 1), (2.0, 3)):
        feeds["threshold"] = np.array(threshold, np.float32)
        _, _, gate, exit_depth, new_key, new_value = session.run(None, feeds)
        assert exit_depth.tolist() == [depth]
        assert gate.shape == (depth, 1, 3) and new_key.shape[0] == new_value.shape[0] == depth


def test_threshold_0_does_less_work(bundle: Path, tmp_path: Path) -> None:
    """The profile counts the block's operators: an exit after loop 1 of 3 runs a third of them."""

    def block_operators(threshold: float) -> int:
        host = Host(bundle, 1)
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / f"profile_{threshold}")
        host.session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options)
        host.run([[5, 6, 7]], threshold=threshold)
        events = json.loads(Path(host.session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name") == "Softmax" for event in events)

    assert block_operators(2.0) == 3 * block_operators(0.0) > 0


def test_the_model_passes_onnxs_own_checker_and_stores_weights_once(bundle: Path) -> None:
    onnx.checker.check_model(str(bundle / "model.onnx"))
    model = onnx.load(str(bundle / "model.onnx"), load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("Loop") == 1
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    # Once for all depths, in the wide form: x and the padded adapters of q, k and v in; q, k and v out.
    assert list(stored["block.0.qkv"].dims) == [72 + 3 * 32, 96 + 32 + 32]


@pytest.mark.parametrize("bits, error", [(16, 2e-2), (8, 0.25), (4, 3.0)])
def test_fewer_bits_stay_near_torch(recursive: Path, tmp_path: Path, bits: int, error: float) -> None:
    export(recursive, tmp_path / "bundle", bits=bits)
    ids = RNG.integers(2, 300, 30).tolist()
    logits, *_ = Host(tmp_path / "bundle", 1).run([ids])
    theirs = torch_logits(recursive, ids)[-1]
    assert np.abs(logits[0] - theirs).max() < error * max(1, np.abs(theirs).std())


def test_untied_heads_biases_and_rope_scaling(make_source: Callable[..., Path], tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    folder = make_source(tie_word_embeddings=False, attention_bias=True, mlp_bias=True, rope_parameters=rope)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    export(folder, tmp_path / "bundle", bits=32, loops=1)
    ids = RNG.integers(2, 300, 40).tolist()
    logits, *_ = Host(tmp_path / "bundle", 1).run([ids])
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits[0], theirs, atol=1e-4)


def test_the_docs_name_the_tensors_of_the_block_graph() -> None:
    """Of a model that has them all: a hazard, windows of two kinds, two sets of frequencies."""
    section = DOCS.read_text(encoding="utf-8").partition("## The block graph")[2].partition("\n## ")[0]
    rows = {name: row for row in section.splitlines() if row.startswith("|") for name in re.findall(r"`([\w.]+)`", row)}
    shape = Architecture("x", 2, 2, 0, 16, 2, 1, 8, 50, 64, 2, 32, ((None, 7),) * 2, 32, Looping(gate="hazard"))
    for tensor in (*block_inputs(shape), *block_outputs(shape)):
        layer_or_group = re.sub(
            r"\.1\.\d+$", ".1.l" if tensor.name.startswith(("past", "present")) else ".1", tensor.name
        )
        assert layer_or_group in rows, tensor.name
        if not layer_or_group.startswith("present"):  # as the inputs
            assert {"float32": "float"}.get(np.dtype(tensor.dtype).name, np.dtype(tensor.dtype).name) in rows[
                layer_or_group
            ]
