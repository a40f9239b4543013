"""What `inspect` says a bundle would take is what `export` then writes, and no weight is read for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.conversion.safetensors_files import SafetensorsFiles
from rrt_edge.exporters import export
from rrt_edge.exporters.sizes import sizes_of
from tests.checkpoints import save_tokenizer
from tests.families import random_model
from tests.gguf_files import write_gguf

LARGER: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}
NEAR = 0.02


def predicted(source: Path, **options: int) -> dict[str, int]:
    """The sizes, with all reading of weights refused."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a weight is read")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Checkpoint, "tensor"), (SafetensorsFiles, "read"), (GgufHeader, "rows")):
            patch.setattr(owner, name, refuse)
        return sizes_of(source, **options)


def written(source: Path, bundle: Path, bits: str, **options: int) -> int:
    export(source, bundle, bits=bits if bits == "source" else int(bits), **options)  # type: ignore[arg-type]
    return sum(path.stat().st_size for path in bundle.iterdir())


def save(case: str, folder: Path, **changes: Any) -> Path:
    random_model(case, **{**LARGER, **changes}).save_pretrained(folder)
    save_tokenizer(folder, 300)
    return folder


@pytest.mark.parametrize(
    ("case", "changes", "options"),
    [
        ("llama", {}, {"loops": 1}),
        ("llama-biases", {}, {"loops": 2, "rank": 8}),
        ("llama", {"hidden_size": 248}, {"loops": 1}),  # rows that do not come in whole blocks
        ("qwen3", {}, {"loops": 3}),
        ("gemma3", {}, {"loops": 1}),
        ("gpt_neox", {"head_dim": None}, {"loops": 2, "rank": 4}),
        ("phi3", {"head_dim": 32}, {"loops": 1}),
        ("granite", {}, {"loops": 1}),
        ("llama", {"hidden_size": 320}, {"loops": 2, "rank": 8, "block_size": 64}),
        ("qwen2", {"intermediate_size": 640}, {"loops": 1, "block_size": 128}),
        ("llama", {"hidden_size": 96}, {"loops": 3, "rank": 4, "block_size": 128}),
    ],
)
def test_a_folder_becomes_as_large_as_was_said(
    case: str, changes: dict[str, Any], options: dict[str, int], tmp_path: Path
) -> None:
    source = save(case, tmp_path / "source", **changes)
    sizes = predicted(source, **options)
    assert list(sizes) == ["4", "8", "16", "32"]
    for bits, size in sizes.items():
        if bits in ("16", "32"):
            options.pop("block_size", None)
        assert size == pytest.approx(written(source, tmp_path / bits, bits, **options), rel=NEAR), bits


def test_a_recursive_checkpoint_too(tmp_path: Path) -> None:
    source = save("qwen2", tmp_path / "source")
    rrt_edge.convert(source, tmp_path / "recursive", loops=3, rank=4, component_ranks={"ffn": 8}, own_vectors=True)
    for bits, size in predicted(tmp_path / "recursive").items():
        assert size == pytest.approx(written(tmp_path / "recursive", tmp_path / bits, bits), rel=NEAR), bits


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1", "Q4_K", "F16", "F32"])
def test_a_gguf_file_too(kind: str, tmp_path: Path) -> None:
    write_gguf(random_model("qwen2", **LARGER), tmp_path / "model.gguf", kind)
    sizes = predicted(tmp_path / "model.gguf")
    assert list(sizes) == ["4", "8", "16", "32", "source"]
    assert list(predicted(tmp_path / "model.gguf", block_size=64)) == ["4", "8", "16", "32"]  # its own are of 32
    for bits in ("4", "source"):
        assert sizes[bits] == pytest.approx(written(tmp_path / "model.gguf", tmp_path / bits, bits, loops=1), rel=NEAR)


def test_what_cannot_be_exported_is_refused_as_export_does(tmp_path: Path) -> None:
    source = save("llama", tmp_path / "source", hidden_act="tanh")
    with pytest.raises(rrt_edge.BadInputError, match="hidden_act 'tanh' cannot be exported"):
        sizes_of(source)
    with pytest.raises(rrt_edge.BadInputError, match="loops 4 does not divide the 6 layers"):
        sizes_of(source, loops=4)
