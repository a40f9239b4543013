"""Checkpoints whose config or index says what no model has: one sentence that names the file and the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.folder import INDEX, SINGLE
from rrt_edge.runtime import Model, Sampling

ODD: dict[str, Any] = {
    "num_hidden_layers": [0, -1, 10**9, "12", 1.5, True, [12], 10**400],
    "num_attention_heads": [0, -8, "8", 10**9, {}],
    "num_key_value_heads": [0, 5, "2", 10**9],
    "hidden_size": [0, -72, "72", 10**12, [72]],
    "intermediate_size": [0, "100", 10**12],
    "head_dim": [0, -16, "16", 10**9],
    "vocab_size": [0, -300, "300", 10**12],
    "max_position_embeddings": [0, "512", -1],
    "model_type": [None, 7, [], {}],
    "architectures": ["LlamaForCausalLM", [1], {"a": 1}],
    "auto_map": [7, "x", []],
    "text_config": [7, [], json.loads('{"text_config": ' * 300 + "7" + "}" * 300)],
    "hidden_act": ["no-such-function", 7],
    "rope_parameters": [
        {"rope_type": "no-such-type"},
        {"rope_type": "linear"},
        {"rope_type": "default", "rope_theta": "1e4"},
    ],
    "rms_norm_eps": ["much"],
    "dtype": ["float8"],
    "tie_word_embeddings": [None, "yes"],
    "attention_bias": ["no"],
    "layer_types": ["full_attention", ["full_attention"]],
    "eos_token_id": [[1, "2"]],
}
CASES = [(field, value) for field, values in ODD.items() for value in values]


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "source")


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(rrt_edge.BadInputError) as caught:
        rrt_edge.convert(folder, out, loops=3, rank=2)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and not out.exists()
    return message


@pytest.mark.parametrize(("field", "value"), CASES, ids=[f"{field}-{index}" for index, (field, _) in enumerate(CASES)])
def test_an_odd_field_is_named(copied: Path, tmp_path: Path, field: str, value: Any) -> None:
    config = json.loads((copied / "config.json").read_text())
    text = json.dumps({**config, field: "VALUE"}).replace(
        '"VALUE"', str(value) if value == 10**400 else json.dumps(value)
    )
    (copied / "config.json").write_text(text)
    message = refused(copied, tmp_path / "out")
    assert message.startswith(str(copied / "config.json"))
    assert field in message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model_type": "llama", "model_type": "gemma"}',
        '{"vocab_size": ' + "1" * 5000 + "}",
        "[]",
        "7",
        "",
    ],
    ids=["nested", "twice", "digits", "list", "number", "empty"],
)
def test_a_config_that_is_no_object_is_refused(copied: Path, tmp_path: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    assert refused(copied, tmp_path / "out").startswith(str(copied / "config.json"))


def test_a_null_stands_for_no_auto_map(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "no-such-type", "auto_map": None}))
    with pytest.raises(rrt_edge.BadInputError, match=r"config\.json: cannot be read as a 'no-such-type' config"):
        Checkpoint(copied)


@pytest.mark.parametrize(
    "index",
    [
        {}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": 7}, {"weight_map": {"a": {"b": "c"}}},
        {"weight_map": {"a": "../model.safetensors"}}, {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "x" * 300}}, {"weight_map": {"a": ""}}, {"weight_map": {"a": "."}},
        {"weight_map": {"a": "b\\c"}},
        {"weight_map": {"a": "é" * 200}}, {"weight_map": [["a", SINGLE]]},
        {"weight_map": {"a": 1}}, {"weight_map": {"a": "gone.safetensors"}}, [],
    ],
)  # fmt: skip
def test_an_index_names_files_beside_it(copied: Path, tmp_path: Path, index: Any) -> None:
    (copied / SINGLE).rename(copied / "model-00001.safetensors")
    (copied / INDEX).write_text(json.dumps(index))
    message = refused(copied, tmp_path / "out")
    assert message.startswith(str(copied))


@pytest.mark.parametrize(
    ("field", "value"),
    [("loops", 0), ("loops", "3"), ("loops", 5), ("text_config", 7), ("text_config", {}), ("component_ranks", [1]),
     ("rank", "much"), ("kv_rule", "never"), ("kv_rule", 3)],
)  # fmt: skip
def test_an_odd_recursive_config_is_named(recursive: Path, tmp_path: Path, field: str, value: Any) -> None:
    folder = shutil.copytree(recursive, tmp_path / "recursive")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(rrt_edge.BadInputError) as caught:
        Checkpoint(folder)
    assert str(caught.value).startswith(str(folder / "config.json")) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "float8_e4m3fn"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_weights_of_another_type_are_not_taken_for_numbers_that_count(
    copied: Path, tmp_path: Path, kind: str, which: str
) -> None:
    torch, files = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    tensors = files.load_file(copied / SINGLE)
    name = sorted(tensors)[0 if which == "first" else -1]
    tensors[name] = torch.zeros(tensors[name].shape).to(getattr(torch, kind))
    files.save_file(tensors, copied / SINGLE)
    message = refused(copied, tmp_path / "out")
    assert f"{name} has numbers of the type {kind}; weights must be of float32, bfloat16, float16, float64" in message


@pytest.mark.parametrize("text", ["[" * 100_000, "", "[]", "7", "\0", '{"top_p": NaN}'])
def test_a_broken_generation_config_costs_what_it_says_and_a_line(
    copied: Path, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied / "generation_config.json"
    path.write_text(text)
    rrt_edge.convert(copied, tmp_path / "out", loops=3)
    (message,) = [line for line in caplog.messages if line.startswith(f"{path}: ")]
    assert "cannot be read" in message and message.endswith("correct the file") and "\n" not in message
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert written.eos_token_id == 1 and written.do_sample is None  # as config.json has it
    rrt_edge.export(copied, tmp_path / "bundle", loops=3, bits=32)
    with Model.load(tmp_path / "bundle") as model:
        assert model.manifest.eos_token_ids == (1,) and model.sampling() == Sampling()


ODD_GENERATION: list[dict[str, Any]] = [
    {"max_new_tokens": -1}, {"max_new_tokens": "7"}, {"early_stopping": [1]}, {"num_return_sequences": 3},
    {"cache_implementation": "no-such-cache"}, {"compile_config": {}}, {"watermarking_config": {"seeding_scheme": "x"}},
    {"suppress_tokens": 7}, {"assistant_model": "x"}, {"pad_token_id": "x"}, {"dtype": 5},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_GENERATION, ids=lambda odd: next(iter(odd)))
def test_an_odd_field_of_a_generation_config_is_left_out_and_named(
    copied: Path, tmp_path: Path, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path, fields = copied / "generation_config.json", {"temperature": 0.7, "eos_token_id": [1, 5]}
    path.write_text(json.dumps({**fields, **odd}))
    rrt_edge.convert(copied, tmp_path / "out", loops=3)
    (message,) = [line for line in caplog.messages if line.startswith(f"{path}: ")]
    assert f"left out: {next(iter(odd))} " in message and message.endswith("correct the file") and "\n" not in message
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert written.eos_token_id == [1, 5] and written.temperature == 0.7


def test_an_index_says_which_files_count_and_not_what_they_hold(copied: Path, tmp_path: Path) -> None:
    """As transformers has it: all tensors of the files that it names are read."""
    rrt_edge.convert(copied, tmp_path / "before", loops=3)
    (copied / SINGLE).rename(copied / "model-00001.safetensors")
    (copied / INDEX).write_text(json.dumps({"weight_map": {"no.such.tensor": "model-00001.safetensors"}}))
    rrt_edge.convert(copied, tmp_path / "after", loops=3)
    assert (tmp_path / "after" / SINGLE).read_bytes() == (tmp_path / "before" / SINGLE).read_bytes()
