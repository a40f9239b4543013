"""Reading checkpoints: every kind of damage is one line that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import rrt_edge
from rrt_edge.checkpoint import Checkpoint


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copied"))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match="nowhere: no such folder"):
        Checkpoint(tmp_path / "nowhere")


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub() -> None:
    with pytest.raises(rrt_edge.BadInputError, match="not to be had from the Hugging Face hub"):
        Checkpoint("nobody/no-such-model")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=r"holds no config\.json"):
        Checkpoint(tmp_path)


def test_config_that_is_not_json(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(rrt_edge.BadInputError, match=r"config\.json: not valid JSON"):
        Checkpoint(copied)


def test_unknown_family(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(rrt_edge.BadInputError, match="model_type 'gpt2' is not supported; supported: gemma, "):
        rrt_edge.convert(copied, tmp_path / "out")
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(rrt_edge.BadInputError, match="nonsense"):
        rrt_edge.convert(copied, tmp_path / "out")


def test_truncated_weights(copied: Path, tmp_path: Path) -> None:
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(rrt_edge.BadInputError, match=r"model\.safetensors: damaged or cut short"):
        rrt_edge.convert(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(rrt_edge.BadInputError, match=r"holds no model\.safetensors"):
        Checkpoint(copied)


def test_weights_of_another_model(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 24}))
    with pytest.raises(rrt_edge.BadInputError, match="hold no tensor"):
        rrt_edge.convert(copied, tmp_path / "out")


def test_sharded_checkpoints_convert_as_single_ones(source: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    rrt_edge.convert(tmp_path / "sharded", tmp_path / "a", rank=2)
    rrt_edge.convert(source, tmp_path / "b", rank=2)
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_missing_shard_is_named(source: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    shard = sorted((tmp_path / "sharded").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(rrt_edge.BadInputError, match=shard.name):
        Checkpoint(tmp_path / "sharded")
