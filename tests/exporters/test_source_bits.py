"""`--bits source`: a GGUF file's blocks stand in the bundle as they are."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.exporters import Tolerance, export, verify
from rrt_edge.quantisation.blocks import Quantized, dequantize
from rrt_edge.runtime import Model
from tests.families import random_model
from tests.gguf_files import write_gguf

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
CHANGES = {"llama": {"rope_parameters": None, "tie_word_embeddings": False}, "gemma2": {"query_pre_attn_scalar": 16}}
FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "granite", "gpt_neox")


def written(path: Path, family: str, kind: str) -> Path:
    changes = {**SIZES, **CHANGES.get(family, {})}
    if family == "phi3":
        changes |= {"num_key_value_heads": 2}
    write_gguf(random_model(family, **changes), path, kind)
    return path


def matrices(bundle: Path) -> dict[str, np.ndarray]:
    """The quantised matrices of a bundle as its kernels see them."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    load_external_data_for_model(model, str(bundle))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for name, packed in arrays.items():
        if name.endswith(".packed"):
            scales = arrays[name.replace(".packed", ".scales")]
            bits = packed.shape[-1] * 8 // 32
            found[name.removesuffix(".packed")] = dequantize(Quantized(packed, scales, bits, scales.shape[1] * 32))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_kept_to_the_last_bit(tmp_path: Path, family: str, kind: str) -> None:
    source = written(tmp_path / "model.gguf", family, kind)
    export(source, tmp_path / "kept", bits="source", loops=1)
    export(source, tmp_path / "floats", bits=32, loops=1)
    kept, plain = matrices(tmp_path / "kept"), onnx.load(tmp_path / "floats" / "model.onnx")
    floats = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in plain.graph.initializer}
    assert {name.partition(".")[2] for name in kept} >= {"0.down", "1.down"}
    for name, matrix in kept.items():
        theirs = floats[name] if name == "embedding" else floats[name].T
        np.testing.assert_allclose(matrix, theirs, rtol=1e-6 if family == "granite" else 0)
    with Model.load(tmp_path / "kept", device="cpu") as model:
        assert model.manifest.quantization.bits == (4 if kind == "Q4_0" else 8)
    if family == "llama":
        assert_near(tmp_path / "kept", source)


def assert_near(bundle: Path, source: Path) -> None:
    """Activations are rounded to 8 bits; a random model's first choices lie close together."""
    report = verify(bundle, source=source, loosened=Tolerance(top1_agreement=0.95))
    assert report.ok and report.depths[0].kl < 1e-3


def test_what_cannot_be_kept_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = written(tmp_path / "model.gguf", "qwen3", "Q4_1")
    with caplog.at_level(logging.WARNING):
        report = export(source, tmp_path / "bundle", bits="source", loops=1)
    assert "16 of Q4_1, which onnxruntime's blocks cannot say exactly, are rounded once more, to 8 bits" in caplog.text
    assert report.bits == 8
    assert_near(tmp_path / "bundle", source)


def test_files_of_floats_keep_them(tmp_path: Path) -> None:
    source = written(tmp_path / "model.gguf", "qwen3", "F16")
    assert Checkpoint(source).tensor("model.embed_tokens.weight", dtype=torch.float16).dtype == torch.float16
    assert export(source, tmp_path / "bundle", bits="source", loops=1).bits == 16
    assert verify(tmp_path / "bundle", source=source).ok


def test_it_goes_with_files_that_are_not_shared(source: Path, tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match="bits source keeps the blocks of a GGUF file"):
        export(source, tmp_path / "bundle", bits="source", loops=1)
    with pytest.raises(rrt_edge.BadInputError, match="bits source goes with loops 1 and rank 0"):
        export(written(tmp_path / "model.gguf", "qwen3", "Q4_0"), tmp_path / "bundle", bits="source")
