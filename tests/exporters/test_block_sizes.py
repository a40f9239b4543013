"""Bundles with blocks of every size: near torch, smaller, and what their manifest says of them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.quantisation.blocks import fitting_block
from rrt_edge.runtime import Manifest
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS
from tests.checkpoints import save_tokenizer
from tests.families import random_model
from tests.host import Host

IDS = np.random.default_rng(5).integers(2, 300, 24).tolist()


def save(folder: Path, case: str, loops: int, rank: int, **changes: Any) -> Path:
    """A recursive checkpoint of two layers a loop, of which each loop has adapters and vectors of its own."""
    fields = {"num_hidden_layers": 2 * loops, "num_attention_heads": 8, "head_dim": 16, **changes}
    random_model(case, **fields).save_pretrained(folder / "source")
    save_tokenizer(folder / "source", 300)
    rrt_edge.convert(folder / "source", folder / "recursive", loops=loops, rank=rank, own_vectors=True)
    return folder / "recursive"


@torch.no_grad()
def torch_logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat(model(torch.tensor([IDS]), output_depths=True).depth_logits).numpy()  # [depths, S, V]


def away(bundle: Path, theirs: np.ndarray) -> float:
    """The mean distance of logits from torch's, to how large these are."""
    host = Host(bundle, 1)
    ours = np.stack([host.run([IDS], last=depth)[0][0] for depth in range(1, len(theirs) + 1)])
    return float((np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).mean())


def sizes_in(bundle: Path) -> set[int]:
    """The block sizes of all graphs' operators; each stores as many bytes as its sizes say."""

    def nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, dict[str, onnx.TensorProto]]]:
        for node in graph.node:
            yield node, {tensor.name: tensor for tensor in model.graph.initializer}
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from nodes(attribute.g)

    models = [onnx.load(bundle / "model.onnx", load_external_data=False)]
    if (bundle / DEVICE_GRAPHS).is_file():
        with zipfile.ZipFile(bundle / DEVICE_GRAPHS) as archive:
            names = [name for name in archive.namelist() if name.endswith(".onnx")]
            models += [onnx.load_from_string(archive.read(name)) for name in names]
    sizes = set()
    for model in models:
        for node, tensors in nodes(model.graph):
            about = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "MatMulNBits":
                blocks = -(-about["K"] // about["block_size"])
                shape = [about["N"], blocks, about["block_size"] * about["bits"] // 8]
                assert list(tensors[node.input[1]].dims) == shape
            if "block_size" in about:
                sizes.add(about["block_size"])
    return sizes


@pytest.mark.parametrize(
    ("case", "loops", "rank", "widths", "block", "expected"),
    [
        ("llama", 2, 8, {"hidden_size": 512, "intermediate_size": 576}, 128, {128, 64, 32}),  # attention: 128 wide
        ("qwen2", 1, 0, {"hidden_size": 320, "intermediate_size": 512, "head_dim": 40}, 128, {128, 64}),
        ("qwen2", 3, 4, {"hidden_size": 256, "intermediate_size": 256, "head_dim": 32}, 64, {64}),
        ("gemma3", 3, 64, {"hidden_size": 96, "intermediate_size": 384}, 64, {64, 32}),
        ("llama", 1, 0, {"hidden_size": 48, "intermediate_size": 100}, 128, {32}),
    ],
)
def test_every_size_is_near_torch(
    tmp_path: Path, case: str, loops: int, rank: int, widths: dict[str, int], block: int, expected: set[int]
) -> None:
    recursive = save(tmp_path, case, loops, rank, **widths)
    theirs = torch_logits(recursive)
    for bits in (8, 4):
        bundle, usual = tmp_path / f"{bits}", tmp_path / f"usual{bits}"
        ours = export(recursive, bundle, bits=bits, block_size=block).weight_bytes
        usually = export(recursive, usual, bits=bits).weight_bytes
        assert away(bundle, theirs) < 1.4 * away(usual, theirs) < (0.1 if bits == 8 else 0.9)
        said = Manifest.read(bundle).quantization
        assert sizes_in(bundle) == {said.block_size, *(said.smaller_blocks or ())} == expected
        assert bits == 8 or all(count <= usually[part] for part, count in ours.items())


def test_rows_are_whole_blocks_of_what_fits() -> None:
    for asked, columns, block in (
        (128, 2048, 128), (128, 576, 64), (128, 1536, 128), (128, 96, 32), (128, 384, 64), (128, 512, 128),
        (64, 2048, 64), (64, 576, 64), (64, 192, 32), (64, 48, 32), (32, 2048, 32), (128, 100, 32),
    ):  # fmt: skip
        assert fitting_block(columns, asked) == block


def test_unshared_bytes_are_what_one_loop_takes(source: Path, tmp_path: Path) -> None:
    one, three = (export(source, tmp_path / f"{loops}", loops=loops, block_size=64) for loops in (1, 3))
    assert one.unshared_weight_bytes == three.unshared_weight_bytes == one.weight_bytes
