"""Reading checkpoints: every kind of damage is one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint


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


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(rrt_edge.BadInputError, match=r"adapter_config\.json: this is an adapter alone; merge it"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config: the weights are .*gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: the weights are .*awq"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts 8: mixtures of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "num_experts 128: mixtures of experts"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM.*not a decoder-only"),
        ({"model_type": "t5", "architectures": None, "is_encoder_decoder": True}, "is_encoder_decoder True"),
        ({"layer_types": ["chunked_attention"] * 12}, "layer_types names 'chunked_attention'"),
        ({"hidden_size": 48}, r"embed_tokens\.weight is 300 x 72, but config\.json makes it 300 x 48"),
        ({"num_key_value_heads": 3}, r"k_proj\.weight is 32 x 72, but config\.json makes it 48 x 72"),
        ({"tie_word_embeddings": False}, "hold no tensor 'lm_head.weight'"),
        ({"attention_bias": True}, "hold no tensor 'model.layers.0.self_attn.q_proj.bias'"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_told_in_a_line_that_names_the_field(
    copied: Path, tmp_path: Path, fields: dict, message: str
) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(rrt_edge.BadInputError, match=message) as raised:
        rrt_edge.convert(copied, tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_weights_the_config_has_no_place_for(make_source: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_source(attention_bias=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": False}))
    with pytest.raises(rrt_edge.BadInputError, match=r"_proj\.bias', for which config.json has no place"):
        rrt_edge.convert(folder, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_code_that_a_checkpoint_brings_runs_only_where_it_is_trusted(
    copied: Path, tmp_path: Path, model_type: str
) -> None:
    marker = tmp_path / "was-run"
    (copied / "configuration_mine.py").write_text(
        f"""
from pathlib import Path
from transformers import LlamaConfig
Path({str(marker)!r}).touch()
class MyConfig(LlamaConfig):
    model_type = "mine"
"""
    )
    config = json.loads((copied / "config.json").read_text())
    brought = {"model_type": model_type, "auto_map": {"AutoConfig": "configuration_mine.MyConfig"}}
    (copied / "config.json").write_text(json.dumps({**config, **brought}))
    if model_type == "llama":  # transformers' own class stands in its place
        rrt_edge.convert(copied, tmp_path / "out", trust_remote_code=True)
        assert not marker.exists()
        return
    with pytest.raises(rrt_edge.BadInputError, match=r"auto_map: its model_type 'mine' .*--trust-remote-code"):
        rrt_edge.convert(copied, tmp_path / "out")
    assert not marker.exists()
    with pytest.raises(rrt_edge.BadInputError, match="model_type 'mine' is not supported"):
        rrt_edge.convert(copied, tmp_path / "out", trust_remote_code=True)
    assert marker.exists()


def test_templates_beside_the_first_come_along(source: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    several = Path(shutil.copytree(source, tmp_path / "several"))
    tokenizer = AutoTokenizer.from_pretrained(several)
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(several)
    (tmp_path / "out").mkdir()
    Checkpoint(several).copy_companions(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
