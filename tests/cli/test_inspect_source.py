"""`rrt-edge inspect` of what is not exported yet: what it is, what can be made of it, and how large that would be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, MixtralConfig

from rrt_edge.cli import main
from rrt_edge.exporters.sizes import sizes_of
from tests.checkpoints import save_tokenizer
from tests.cli.test_start import MAIN, WITHOUT
from tests.families import random_model
from tests.gguf_files import write_gguf


def inspect(*arguments: object, columns: int = 400) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)], env={"COLUMNS": str(columns)})


def facts(*arguments: object) -> dict[str, Any]:
    done = inspect(*arguments, "--json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def refusal(*arguments: object) -> str:
    done = inspect(*arguments)
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
    return done.stderr


def test_a_folder_is_what_transformers_says(source: Path) -> None:
    shown = facts(source)
    config = AutoConfig.from_pretrained(source)
    model = random_parameters(source)
    expected = {
        "kind": "checkpoint", "family": "llama", "architecture": "LlamaForCausalLM", "layers": 12, "hidden_size": 72,
        "intermediate_size": 100, "attention_heads": 6, "key_value_heads": 2, "head_dim": 16, "vocabulary": 300,
        "context_length": config.max_position_embeddings, "parameters": model, "stored": {"F32": model},
        "bytes": (source / "model.safetensors").stat().st_size, "tokenizer": "BPE (tokenizer.json)",
        "chat_template": True, "ends": [{"id": 1, "text": "</s>"}], "loops": [1, 2, 3, 4, 6, 12], "looped": None,
        "sharing": None, "problem": None, "name": None, "source": str(source), "sizes": sizes_of(source),
    }  # fmt: skip
    assert shown == expected


def random_parameters(folder: Path) -> int:
    from transformers import AutoModelForCausalLM

    return int(AutoModelForCausalLM.from_pretrained(folder).num_parameters())


def test_people_see_it_in_tables(source: Path) -> None:
    done = inspect(source)
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and "can be converted yes; loops: 1, 2, 3, 4, 6, 12 (1: unshared)" in lines
    assert "ends of a reply 1 </s>" in lines
    expected = [f"a bundle, --bits {bits} {size / 1e6:.2f} MB" for bits, size in sizes_of(source).items()]
    assert [line for line in lines if "--bits" in line] == expected


def test_sizes_of_shared_layers(source: Path) -> None:
    assert facts(source, "--loops", 3, "--rank", 2)["sizes"] == sizes_of(source, loops=3, rank=2)
    assert "a bundle, --bits 4, 3 loops, rank 2" in inspect(source, "--loops", 3, "--rank", 2).stdout
    assert "loops 5 does not divide the 12 layers; choose one of 1, 2, 3, 4, 6, 12" in refusal(source, "--loops", 5)


def test_a_recursive_checkpoint_says_how_it_shares(recursive: Path, source: Path) -> None:
    shown = facts(recursive)
    assert shown["kind"] == "recursive checkpoint" and shown["loops"] == [] and shown["problem"] is None
    assert shown["sharing"] == {
        "loops": 3, "layers_per_block": 4, "rank": 4, "component_ranks": {}, "kv_rule": "exact", "gate_trained": False,
        "source": source.name,
    }  # fmt: skip
    assert shown["family"] == "llama" and list(shown["sizes"]) == ["4", "8", "16", "32"]
    lines = [" ".join(line.replace("│", " ").split()) for line in inspect(recursive).stdout.splitlines()]
    assert "loops x layers per block 3 x 4" in lines and "depths 1, 2, 3" in lines and "LoRA rank 4" in lines
    assert "is recursive already" in refusal(recursive, "--loops", 2)


def test_a_gguf_file(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
    model = random_model("llama-biases", attention_bias=False, mlp_bias=False, **wide)
    write_gguf(model, tmp_path / "model.gguf", "Q8_0", **{"general.name": "Tiny [bold]\x1b[31m"})
    shown = facts(tmp_path / "model.gguf")
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert shown["kind"] == "GGUF file" and shown["family"] == "llama" and shown["architecture"] == "llama"
    assert shown["stored"] == {"Q8_0": matrices, "F32": vectors} and shown["chat_template"] is True
    assert shown["tokenizer"] == "gpt2, cut as gpt-2" and shown["ends"] == [{"id": 1, "text": None}]
    assert shown["layers"] == 6 and shown["loops"] == [1, 2, 3, 6] and "source" in shown["sizes"]
    shown = inspect(tmp_path / "model.gguf").stdout
    assert "Tiny [bold]\\u001b[31m" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (GPT2Config(n_layer=2), "model_type 'gpt2' is not supported"),
        (MixtralConfig(num_hidden_layers=2), "num_local_experts 8: mixtures of experts cannot be made recursive"),
    ],
)
def test_why_a_model_cannot_be_converted(config: Any, problem: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    if isinstance(config, GPT2Config):
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    shown = facts(tmp_path)
    assert problem in shown["problem"] and shown["family"] == config.model_type
    assert shown["loops"] == [] and shown["sizes"] is None
    assert f"no: {shown['problem']}" in inspect(tmp_path).stdout


def test_an_architecture_of_llama_cpp_that_is_not_read(tmp_path: Path) -> None:
    model = random_model("qwen2")
    write_gguf(model, tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole.replace(b"qwen2", b"grok2"))
    shown = facts(tmp_path / "model.gguf")
    assert "general.architecture 'grok2' is not read" in shown["problem"]
    assert (shown["family"], shown["layers"], shown["hidden_size"]) == ("grok2", 6, model.config.hidden_size)


def test_without_weights_it_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(source).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, 300)
    shown = facts(tmp_path)
    assert "holds no model.safetensors" in shown["problem"] and shown["layers"] == 12 and shown["parameters"] == 0


@pytest.mark.parametrize(
    "header", [None, "", "[]", "{", '{"a": {}}', '{"a": {"dtype": "F32", "shape": [-1]}}', '{"a": {"shape": "F"}}']
)
def test_damaged_weights_are_named(header: str | None, source: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(source).save_pretrained(tmp_path)
    length = b"\xff" * 8 if header is None else len(header).to_bytes(8, "little")
    (tmp_path / "model.safetensors").write_bytes(length + (header or "").encode())
    assert "model.safetensors: damaged or cut short" in facts(tmp_path)["problem"]


def test_what_is_no_checkpoint_is_one_line(source: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "names no model_type" in refusal(tmp_path)
    assert "is no bundle, whose graph --graph shows" in refusal(source, "--graph")
    refused = "is a bundle; --loops, --rank and --block-size are of what is not exported yet"
    assert refused in refusal(bundle, "--loops", 2) and refused in refusal(bundle, "--block-size", 64)


def test_without_torch_all_but_the_sizes_is_shown(source: Path) -> None:
    command = [sys.executable, "-P", "-c", WITHOUT + MAIN, "inspect", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "LlamaForCausalLM" in done.stdout and "--bits" not in done.stdout, done.stderr
    assert "pip install 'rrt-edge[export]'" in done.stderr and done.stderr.count("\n") == 1
    as_json = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert as_json["layers"] == 12 and as_json["sizes"] is None
