"""Training with the rounding in it: its matrices are those of the bundle, its gradients those that autograd has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.exporters.source_model import source_model
from rrt_edge.model.families import family_of, part_sizes
from rrt_edge.model.lora import split_rows
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.quantisation.plan import Part
from rrt_edge.runtime import Model
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.scoring.bundle_scores import read_examples, score_bundle
from rrt_edge.training.rounding import Rounding
from tests.checkpoints import save_tokenizer
from tests.families import random_model
from tests.training.chats import CHATS, quick


def dequantized(packed: np.ndarray, scales: np.ndarray, bits: int, block: int) -> np.ndarray:
    """[out, blocks * block] by ONNX's own operator, as onnxruntime computes it."""
    shape = (len(scales), scales.shape[1] * block)
    kind = TensorProto.UINT4 if bits == 4 else TensorProto.UINT8
    codes = helper.make_tensor("codes", kind, shape, packed.tobytes(), raw=True)
    middle = np.full(-(-scales.size * bits // 8), 0x88 if bits == 4 else 0x80, np.uint8)
    zero = helper.make_tensor("zero", kind, scales.shape, middle.tobytes(), raw=True)
    node = helper.make_node("DequantizeLinear", ["codes", "scales", "zero"], ["y"], axis=1, block_size=block)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "g", [], [output], [codes, numpy_helper.from_array(scales, "scales"), zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    return np.asarray(y)


def matrices_of(bundle: Path) -> dict[str, np.ndarray]:
    """The matrices that a bundle multiplies by, as onnxruntime dequantises them, and its embedding."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    load_external_data_for_model(model, str(bundle))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    matrices = {name: array for name, array in arrays.items() if name == "embedding"}
    for node in [*model.graph.node, *body.node]:
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            _, packed, scales = node.input
            whole = dequantized(arrays[packed], arrays[scales], sizes["bits"], sizes["block_size"])
            matrices[packed.removesuffix(".packed")] = whole[:, : sizes["K"]]
        if node.op_type == "GatherBlockQuantized":
            rows, _, scales = node.input
            matrices["embedding"] = dequantized(arrays[rows], arrays[scales], sizes["bits"], sizes["block_size"])
    return matrices


def sizes_of_blocks(bundle: Path) -> set[int]:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    fields = [field for node in [*model.graph.node, *body.node] for field in node.attribute]
    return {field.i for field in fields if field.name == "block_size"}


def weights_of(model: RecursiveForCausalLM, weights: dict[str, Tensor]) -> Callable[[str], np.ndarray]:
    """The matrices that a bundle of such weights would multiply by, by its names: docs/graph.md has the wide form."""
    text, loops = model.config.text_config, model.config.loops
    linears = {part: linear for linear in family_of(text).linears for part in linear.parts}

    def of(layer: str, part: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        linear = linears[part]
        path, suffix = f"model.{layer}.{linear.path}", f"_{part}" if len(linear.parts) > 1 else ""
        sizes = {own: part_sizes(text)[own] for own in linear.parts}
        rows = split_rows(weights[f"{path}.weight"], sizes, text.num_attention_heads if linear.by_head else 1)[part]
        a, b = (weights.get(f"{path}.lora_{name}{suffix}") for name in "AB")
        scale = family_of(text).residual_scale(text) if part in ("o", "down") else 1.0
        pair = (None, None) if a is None or b is None else (a.numpy(), b.numpy() * np.float32(scale))
        return rows.numpy() * np.float32(scale), *pair

    def matrix(name: str) -> np.ndarray:
        if name in ("embedding", "head"):
            return weights["lm_head.weight" if name == "head" else "model.embed_tokens.weight"].numpy()
        if name.endswith(".lora_a"):
            layer, _, product = name.removesuffix(".lora_a").rpartition(".")
        else:
            layer, _, product = name.rpartition(".")
        parts = product.split("_") if "_" in product or product in linears else list(product)
        read = [of(layer, part) for part in parts]
        padded = [0 if a is None else -(-loops * a.shape[1] // 32) * 32 for _, a, _ in read]
        if name.endswith(".lora_a"):
            stacked = np.zeros((sum(padded), read[0][0].shape[1]), np.float32)
            for at, (_, a, _) in zip(np.cumsum([0, *padded]), read, strict=False):
                if a is not None:
                    stacked[at : at + loops * a.shape[1]] = a.reshape(-1, a.shape[2])
            return stacked
        whole = np.zeros((sum(len(weight) for weight, _, _ in read), read[0][0].shape[1] + sum(padded)), np.float32)
        row, column = 0, read[0][0].shape[1]
        for (weight, _, b), width in zip(read, padded, strict=True):
            whole[row : row + len(weight), : weight.shape[1]] = weight
            if b is not None:
                whole[row : row + len(weight), column : column + loops * b.shape[2]] = np.concatenate(list(b), axis=1)
            row, column = row + len(weight), column + width
        return whole

    return matrix


def all_weights(model: RecursiveForCausalLM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters(remove_duplicate=False)}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "an embedding that is no whole number of blocks": ("llama", {}),
    "its own head in blocks and in floats": ("llama-biases", {}),
    "a tied embedding in blocks": ("qwen2", {"hidden_size": 64}),
    "projections in one linear, head by head": ("gpt_neox", {}),
    "projections in one linear": ("phi3", {"hidden_size": 96}),
    "keys and values apart from queries": ("llama", {"kv_rule": "propagate"}),
    "no adapters": ("qwen3", {"rank": 0}),
    "blocks of 64, adapters of all projections in one": ("llama", {"hidden_size": 384, "block_size": 64}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_the_matrices_are_those_of_the_bundle(case: str, tmp_path: Path) -> None:
    name, changes = MODELS[case]
    sharing = {"kv_rule": "exact", "rank": 4, **changes}
    sizes = {key: value for key, value in changes.items() if key == "hidden_size"}
    random_model(name, **sizes).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    rrt_edge.convert(
        tmp_path / "source",
        tmp_path / "recursive",
        loops=3,
        rank=sharing["rank"],
        component_ranks={"kv": sharing["rank"] // 2},
    )
    model = RecursiveForCausalLM.from_pretrained(tmp_path / "recursive")
    model.config.kv_rule = sharing["kv_rule"]
    model.save_pretrained(tmp_path / "recursive")
    floats = all_weights(model)
    rounding = Rounding(model, 4, changes.get("block_size", 32))
    with rounding.applied():
        expected = weights_of(model, all_weights(model))
        assert not torch.equal(model.lm_head.weight, floats["lm_head.weight"])
    for name, weight in all_weights(model).items():
        assert torch.equal(weight, floats[name]), name

    export(tmp_path / "recursive", tmp_path / "bundle", block_size=changes.get("block_size"))
    matrices = matrices_of(tmp_path / "bundle")
    assert len(matrices) >= 2 * 4 + 1  # two layers, of four matrices or more
    for name, matrix in matrices.items():
        assert np.array_equal(matrix, expected(name)), name


def test_a_factor_of_the_residual_stream_is_taken_out_again(tmp_path: Path) -> None:
    """Granite's models multiply what layers add by a number, which export has in the matrices."""
    random_model("granite").save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    rrt_edge.convert(tmp_path / "source", tmp_path / "recursive", loops=3, rank=4)
    model = RecursiveForCausalLM.from_pretrained(tmp_path / "recursive")
    with Rounding(model, 4).applied():
        expected = weights_of(model, all_weights(model))
    export(tmp_path / "recursive", tmp_path / "bundle")
    for name, matrix in matrices_of(tmp_path / "bundle").items():
        np.testing.assert_allclose(matrix, expected(name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("eight_bit", "said"), [(None, ""), ((), ", nothing at 8"), (("lora",), ", lora at 8")])
def test_what_training_saw_is_what_export_writes(
    make_source: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eight_bit: tuple[Part, ...] | None,
    said: str,
) -> None:
    """The last evaluation runs on the weights that are saved; export takes how they are rounded from the checkpoint."""
    source, recursive = make_source(intermediate_size=256), tmp_path / "recursive"
    rrt_edge.convert(source, recursive, loops=3, rank=4)
    runs: list[dict[str, Tensor]] = []

    def recorded(model: Any, *args: Any, **kwargs: Any) -> Any:
        runs[:] = [all_weights(model)]
        return forward(model, *args, **kwargs)

    forward = RecursiveForCausalLM.forward
    monkeypatch.setattr(RecursiveForCausalLM, "forward", recorded)
    options = quick(stages=("uptrain", "early-exit"), epochs=2, bits=4, block_size=64, eight_bit=eight_bit)
    rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=source, eval_data=data, options=options)
    monkeypatch.undo()
    model = RecursiveForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    assert (model.config.trained_bits, model.config.trained_block_size) == (4, 64)
    expected = weights_of(model, runs[0])
    export(tmp_path / "out", tmp_path / "bundle")
    assert sizes_of_blocks(tmp_path / "bundle") == {32, 64}
    for name, matrix in matrices_of(tmp_path / "bundle").items():
        assert np.array_equal(matrix, expected(name)), name
    manifest = Manifest.read(tmp_path / "bundle")
    assert manifest.provenance["trained_for"] == f"4 bits in blocks of 64{said}"
    proved = source_model(tmp_path / "out", manifest)  # what verify compares the bundle with
    for name, weight in all_weights(proved).items():
        assert torch.equal(weight, runs[0][name]), name
    assert not torch.equal(runs[0]["model.block.0.mlp.up_proj.weight"], model.model.block[0].mlp.up_proj.weight)


@pytest.mark.parametrize("hidden", [96, 72])  # whole blocks, and an embedding that is its own head, which alone is not
def test_gradients_go_straight_through(make_source: Callable[..., Path], tmp_path: Path, hidden: int) -> None:
    """Against autograd through `float + constant`, where adapters are first scaled as export scales them."""
    rrt_edge.convert(make_source(hidden_size=hidden), tmp_path / "recursive", loops=3, rank=4)
    model = RecursiveForCausalLM.from_pretrained(tmp_path / "recursive")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data *= torch.rand(weight.shape[-1]) + 0.5  # columns of different sizes
    ids = torch.arange(2, 26).view(2, 12)
    floats = dict(model.named_parameters())
    substitutes: dict[str, Tensor] = {}
    rounding = Rounding(model, 4)
    with rounding.applied():
        rounded = all_weights(model)
    for name, value in rounded.items():
        own = floats[name if name in floats else "model.embed_tokens.weight"]
        scaled = own
        if ".lora_" in name:
            b = floats[name.replace("lora_A", "lora_B")].detach()
            columns, common = b.norm(dim=1), b.square().mean(dim=(1, 2)).sqrt() * b.shape[1] ** 0.5
            factor = columns / common[:, None]  # [loops, rank]
            scaled = own * factor[:, :, None] if "lora_A" in name else own / factor[:, None]
        substitutes[name] = scaled + (value - scaled).detach()
    loss = torch.func.functional_call(model, substitutes, (ids,), tie_weights=False).logits.square().mean()
    loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    rounding.round()
    own = model(ids).logits.square().mean()
    own.backward()
    rounding.restore()
    torch.testing.assert_close(own, loss)
    assert any("lora_B" in name for name in expected) and "model.embed_tokens.weight" in expected
    for name, weight in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(
                weight.grad, expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max())
            )


@pytest.mark.parametrize(
    "changes", [{"cpu_replicas": 2}, {"gradient_checkpointing": True}, {"batch": 4, "accumulate": 2}]
)
def test_ways_of_computing_a_step_train_to_the_same_weights(
    recursive: Path, source: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """On one chat, so that however a batch is divided, the mean is the same."""
    data = tmp_path / "chat.jsonl"
    data.write_text((json.dumps({"messages": CHATS[0]}) + "\n") * 16)
    for name, own in {"plain": {}, "other": changes}.items():
        options = quick(stages=("uptrain",), epochs=2, bits=4, lr=1e-3, **own)
        rrt_edge.train(recursive, tmp_path / name, data=data, teacher=source, options=options)
    plain, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "other"))
    before = AutoModelForCausalLM.from_pretrained(recursive).state_dict()
    for name, weight in plain.items():
        change, difference = (weight - before[name]).norm(), (other[name] - weight).norm()
        assert difference <= 0.1 * change, name  # Adam makes much of small gradients, and a last bit may tip a code


def test_a_gate_learns_on_the_rounded_model(recursive: Path, data: Path, tmp_path: Path) -> None:
    rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(stages=("gate",), epochs=2, bits=4))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (recursive, tmp_path / "out"))
    changed = {
        name for name, weight in before.state_dict().items() if not torch.equal(weight, after.state_dict()[name])
    }
    assert changed == {f"exit_gate.{name}" for name in ("inner", "inner_bias", "outer", "bias")}
    assert after.config.trained_bits == 4


def test_all_stages_go_with_it_for_another_rule_and_in_bfloat16(
    recursive: Path, source: Path, data: Path, tmp_path: Path
) -> None:
    options = quick(epochs=1, bits=4, bf16=True, kv_rule="latest")
    report = rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=source, eval_data=data, options=options)
    assert all(np.isfinite(loss) for loss in report.final_loss.values())
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.trained_bits, config.gate_trained, config.kv_rule) == (4, True, "latest")
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    ours = {key: value for key, value in log["gate"][-1].items() if key.startswith("eval_perplexity")}
    export(tmp_path / "out", tmp_path / "bundle")
    with Model.load(tmp_path / "bundle", device="cpu") as model:
        scores = score_bundle(model._loaded.runner, read_examples(model, data, 512))
    for depth in range(1, 4):  # the evaluation was of the rounded model; the bundle's activations are rounded too
        assert ours[f"eval_perplexity_{depth}"] == pytest.approx(scores.at_depth(depth).perplexity, rel=0.1)


def test_what_is_trained_on_in_floats_is_no_longer_of_these_bits(recursive: Path, data: Path, tmp_path: Path) -> None:
    first = quick(stages=("uptrain",), max_steps=1, bits=4)
    rrt_edge.train(recursive, tmp_path / "rounded", data=data, options=first)
    for stage, bits in {"gate": 4, "uptrain": None}.items():
        rrt_edge.train(tmp_path / "rounded", tmp_path / stage, data=data, options=quick(stages=(stage,), max_steps=1))
        assert json.loads((tmp_path / stage / "config.json").read_text()).get("trained_bits") == bits


def test_rounding_is_for_one_process(
    recursive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(rrt_edge.BadInputError, match="bits: rounding is for one process"):
        rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(bits=4))


def test_export_says_where_it_rounds_otherwise(
    recursive: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = quick(stages=("uptrain",), max_steps=1, bits=4, block_size=128)
    rrt_edge.train(recursive, tmp_path / "trained", data=data, options=options)
    report = export(tmp_path / "trained", tmp_path / "bundle")
    assert caplog.text == "" and report.bits == 4
    provenance = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["provenance"]
    assert provenance["trained_for"] == "4 bits in blocks of 128"
    export(tmp_path / "trained", tmp_path / "bundle", bits=8)
    assert "trained: was trained for 4 bits in blocks of 128; this is rounded otherwise (bits 8)" in caplog.text
    caplog.clear()
    export(tmp_path / "trained", tmp_path / "bundle", block_size=32, eight_bit=(), data=data, data_tokens=64)
    (message,) = [record.getMessage() for record in caplog.records if "was trained for" in record.getMessage()]
    assert message.endswith("(block-size 32, eight-bit, data)")


@pytest.mark.parametrize("options", [{"block_size": 64}, {"eight_bit": ()}])
def test_how_is_rounded_goes_with_bits(options: dict[str, Any]) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=r"(block-size|eight-bit) goes with bits 4"):
        quick(**options)
