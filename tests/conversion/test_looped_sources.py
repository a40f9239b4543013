"""What is refused of looped models, and what the commands say of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import rrt_edge
from rrt_edge.cli import main
from rrt_edge.conversion.facts import read_facts
from rrt_edge.exporters import export
from rrt_edge.exporters.sizes import sizes_of
from tests.looped import write_looped

FLAGS = (
    "emb_neighbor_num", "enable_double_loop_split", "loop_share_kv", "enable_hyper_connection", "enable_mhc",
    "enable_depth_attention", "qk_layernorm", "attention_bias", "mlp_bias", "ngram_insert_all_layers",
)  # fmt: skip


@pytest.fixture(scope="module")
def ouro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_looped(tmp_path_factory.mktemp("looped") / "ouro", "ouro")


def changed(source: Path, folder: Path, **fields: object) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize("flag", FLAGS)
def test_parts_that_are_not_known_are_refused_by_name(tmp_path: Path, flag: str) -> None:
    source = write_looped(tmp_path / "source", "nanbeige", **{flag: 2 if flag == "emb_neighbor_num" else True})
    for make in (rrt_edge.convert, export):
        with pytest.raises(rrt_edge.BadInputError, match=rf"config\.json: .*{flag}.*not supported"):
            make(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_with_n_grams_are_refused_by_name(tmp_path: Path) -> None:
    source = write_looped(tmp_path / "source", "nanbeige", insert_ngram_layer_idx=[1])
    with pytest.raises(rrt_edge.BadInputError, match="insert_ngram_layer_idx"):
        rrt_edge.convert(source, tmp_path / "out")
    source = write_looped(tmp_path / "other", "nanbeige", insert_ngram_layer_idx=[])
    assert rrt_edge.convert(source, tmp_path / "out").loops == 2


@pytest.mark.parametrize("loops", [0, 65, "four", 2.5])
def test_loops_that_no_model_has_are_refused(ouro: Path, tmp_path: Path, loops: object) -> None:
    source = changed(ouro, tmp_path / "source", total_ut_steps=loops)
    with pytest.raises(rrt_edge.BadInputError, match=r"config\.json: total_ut_steps .*from 1 to 64"):
        rrt_edge.convert(source, tmp_path / "out")


def test_windows_that_count_are_refused(ouro: Path, tmp_path: Path) -> None:
    source = changed(ouro, tmp_path / "source", use_sliding_window=True, sliding_window=128)
    with pytest.raises(rrt_edge.BadInputError, match="use_sliding_window"):
        rrt_edge.convert(source, tmp_path / "out")


def test_a_missing_gate_is_named(ouro: Path, tmp_path: Path) -> None:
    shutil.copytree(ouro, tmp_path / "source")
    tensors = load_file(ouro / "model.safetensors")
    del tensors["model.early_exit_gate.weight"]
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    for make in (rrt_edge.convert, export):
        with pytest.raises(rrt_edge.BadInputError, match=r"no tensor 'model\.early_exit_gate\.weight'"):
            make(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_in_two_files_are_the_same_model(ouro: Path, tmp_path: Path) -> None:
    shutil.copytree(ouro, tmp_path / "source")
    tensors = load_file(ouro / "model.safetensors")
    (tmp_path / "source" / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:]))):
        name = f"model-{number}.safetensors"
        save_file(part, tmp_path / "source" / name)
        places |= dict.fromkeys(part, name)
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name in ("whole", "parts"):
        rrt_edge.convert(ouro if name == "whole" else tmp_path / "source", tmp_path / name)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_ouro_that_calls_itself_a_llama_is_refused(ouro: Path, tmp_path: Path) -> None:
    source = changed(ouro, tmp_path / "source", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(
        rrt_edge.BadInputError, match=r"input_layernorm_2\.weight', for which config\.json has no place"
    ):
        rrt_edge.convert(source, tmp_path / "out", loops=1)


def test_loops_and_data_are_the_models_own(ouro: Path, tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match="loops 2: this ouro model loops 4 times; leave loops out"):
        rrt_edge.convert(ouro, tmp_path / "out", loops=2)
    with pytest.raises(rrt_edge.BadInputError, match="loops 1: this ouro model loops 4 times"):
        export(ouro, tmp_path / "out", loops=1)
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(rrt_edge.BadInputError, match="looped already"):
        rrt_edge.convert(ouro, tmp_path / "out", rank=4, data=tmp_path / "data.jsonl")


@pytest.mark.parametrize(("name", "value"), [("init", "stepwise"), ("order", "interleaved"), ("lora_init", "svd")])
def test_what_says_how_layers_are_shared_goes_with_sources_that_share_none(
    ouro: Path, tmp_path: Path, name: str, value: str
) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(rrt_edge.BadInputError, match=f"{flag} {value}: .*ouro is looped already.*leave out {flag}"):
        rrt_edge.convert(ouro, tmp_path / "out", **{name: value})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_adapters_of_a_looped_model_may_be_said_to_start_from_nothing(ouro: Path, tmp_path: Path) -> None:
    assert rrt_edge.convert(ouro, tmp_path / "out", rank=4, lora_init="zero").lora_init == "zero"


def test_its_config_needs_no_code_of_its_own(ouro: Path, tmp_path: Path) -> None:
    """Checkpoints name code in auto_map; it is neither run nor asked for."""
    source = changed(ouro, tmp_path / "source", auto_map={"AutoConfig": "configuration_ouro.OuroConfig"})
    assert AutoConfig.from_pretrained(ouro).total_ut_steps == 4
    assert rrt_edge.convert(source, tmp_path / "out").loops == 4


def test_inspect_says_that_it_loops_by_itself(ouro: Path, tmp_path: Path) -> None:
    facts = read_facts(ouro)
    assert (facts.looped, facts.loops) == (4, (4,))
    shown = CliRunner().invoke(main, ["inspect", str(ouro)])
    assert shown.exit_code == 0
    assert "loops by itself" in shown.output
    sizes = sizes_of(ouro, loops=4)
    report = export(ouro, tmp_path / "bundle", bits=8)
    assert abs(report.bytes - sizes["8"]) < 0.02 * report.bytes
    refused = CliRunner().invoke(main, ["inspect", str(ouro), "--loops", "2"])
    assert refused.exit_code
    assert "leave --loops out" in refused.output


def test_commands_read_a_model_without_a_gate_after_its_last_loop_alone(tmp_path: Path) -> None:
    export(write_looped(tmp_path / "source", "nanbeige"), tmp_path / "bundle", bits=8)
    rrt_edge.convert(tmp_path / "source", tmp_path / "recursive")
    (tmp_path / "text.txt").write_text("The cat sees the hen. The dog eats the fox.\n" * 9)
    data = ["--data", str(tmp_path / "text.txt")]
    for folder in ("bundle", "recursive"):
        scored = CliRunner().invoke(main, ["eval", str(tmp_path / folder), *data, "--json"])
        assert scored.exit_code == 0, scored.output
        result = json.loads(scored.stdout)
        assert list(result["scores"]) == ["depth=2"]
        assert result["gate"] is None
    refused = CliRunner().invoke(main, ["calibrate", str(tmp_path / "bundle"), *data])
    assert "has no exit gate, so no token can leave early" in refused.output
    sizes = ["--prompt", "8", "--new", "4", "--repeats", "1"]
    measured = CliRunner().invoke(main, ["bench", str(tmp_path / "bundle"), *sizes, "--json"])
    assert measured.exit_code == 0, measured.output
    assert [row["test"] for row in json.loads(measured.stdout)] == ["prefill:full", "decode:full"]
