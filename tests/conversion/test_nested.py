"""Decoders inside larger models: converted as transformers computes them, and what is left out is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.exporters import export, verify
from tests.checkpoints import save_tokenizer
from tests.conversion.test_saved_ways import TEXT, our_model
from tests.families import CASES, COMMON

VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TEXTS = {"gemma3": "gemma3", "mistral3": "mistral-full", "llava": "llama-biases", "internvl": "qwen2"}
VISIONS = {"gemma3": "siglip_vision_model", "mistral3": "pixtral", "llava": "clip_vision_model",
           "internvl": "internvl_vision"}  # fmt: skip


def write_nested(folder: Path, kind: str, **changes: Any) -> None:
    """A random model that sees images, with norms and biases of its own."""
    text = {**COMMON, **CASES[TEXTS[kind]], "num_hidden_layers": 2, **changes}
    vision = {"model_type": VISIONS[kind], **VISION}
    if kind == "internvl":
        vision |= {"image_size": [28, 28], "patch_size": [14, 14]}
    fields: dict[str, Any] = {"eos_token_id": [1, 2], "image_token_index": 299, "image_token_id": 299}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **fields)
    config.tie_word_embeddings = text["tie_word_embeddings"]
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder, 300)


@torch.no_grad()
def away(folder: Path) -> float:
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return float((our_model(folder)(TEXT).logits - theirs(input_ids=TEXT).logits).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_decoder_is_what_transformers_computes(
    tmp_path: Path, kind: str, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_nested(tmp_path, kind, tie_word_embeddings=tied)
    with caplog.at_level(logging.WARNING):
        assert away(tmp_path) < 1e-4
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("rrt_edge")]
    assert len(lines) == 1 and f"of the {kind} model the decoder is taken; model." in lines[0]
    assert "vision" in lines[0] and lines[0].endswith("are left out")


@pytest.mark.slow
def test_it_is_read_from_several_files(tmp_path: Path) -> None:
    write_nested(tmp_path, "gemma3")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert away(tmp_path / "parts") < 1e-4


@pytest.mark.parametrize("loops", [1, 2])
def test_it_is_exported_and_proved(tmp_path: Path, loops: int) -> None:
    write_nested(tmp_path / "source", "gemma3")
    export(tmp_path / "source", tmp_path / "bundle", bits=32, loops=loops)
    assert verify(tmp_path / "bundle", source=tmp_path / "source").ok


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "paligemma"}, "model_type 'paligemma': its prompt is read in both directions"),
        ({"text_config": {"model_type": "qwen3_moe", "num_experts": 8}}, "num_experts 8: mixtures of experts"),
        ({"text_config": {"model_type": "mamba"}}, "model_type 'mamba' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: the weights are .*awq"),
    ],
)
def test_what_cannot_be_converted_is_told(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_nested(tmp_path / "source", "gemma3")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(rrt_edge.BadInputError, match=message) as raised:
        rrt_edge.convert(tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_the_whole_models_token_ids_count(tmp_path: Path) -> None:
    write_nested(tmp_path / "source", "gemma3")
    assert Checkpoint(tmp_path / "source").config.eos_token_id == [1, 2]
    rrt_edge.convert(tmp_path / "source", tmp_path / "out")
    assert rrt_edge.RecursiveForCausalLM.from_pretrained(tmp_path / "out").config.text_config.eos_token_id == [1, 2]
