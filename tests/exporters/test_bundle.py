"""Export and verify: whole bundles or none, sizes as reported, proofs that can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rrt_edge
from rrt_edge.exporters import Tolerance, export, verify
from rrt_edge.exporters import bundle as bundle_module
from rrt_edge.exporters.options import Part
from rrt_edge.runtime import Manifest
from tests.checkpoints import save_tokenizer
from tests.families import random_model
from tests.host import Host


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    turns = [
        {"role": "user", "content": "The cat sees the hen. " * 4},
        {"role": "assistant", "content": "The fox eats. " * 4},
    ]
    path.write_text("\ufeff" + (json.dumps({"messages": turns}) + "\n\n") * 100, "utf-8")
    return path


def test_sizes_and_hashes_are_what_lies_there(recursive: Path, tmp_path: Path) -> None:
    report = export(recursive, tmp_path / "b")
    files = {path.name: path.stat().st_size for path in (tmp_path / "b").iterdir()}
    assert report.bytes == sum(files.values())
    manifest = Manifest.read(tmp_path / "b")
    manifest.check_hashes(tmp_path / "b")
    assert set(manifest.files) == set(files) - {"manifest.json"}
    assert sum(report.weight_bytes.values()) <= files["model.onnx.data"]
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(files)


@pytest.mark.slow
def test_long_texts_of_a_data_file_are_compared_in_pieces(recursive: Path, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "The cat sees the hen. " * 1000}) + "\n")
    report = verify(bundle, source=recursive, text=path)
    assert report.ok and report.positions > 5000


@pytest.mark.slow
def test_unshared_bytes_are_what_one_loop_takes(source: Path, tmp_path: Path) -> None:
    for bits in (4, 8, 32):
        one = export(source, tmp_path / "one", bits=bits, loops=1)
        three = export(source, tmp_path / "three", bits=bits, loops=3)
        assert one.unshared_weight_bytes == three.unshared_weight_bytes == one.weight_bytes
        assert one.bytes == one.unshared_bytes and "gate" in three.weight_bytes
        assert three.weight_bytes["block"] * 3 == one.weight_bytes["block"]


@pytest.mark.slow
def test_a_source_that_is_not_recursive_is_converted_first(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "b", bits=32, loops=3, rank=4, init="stepwise")
    manifest = Manifest.read(tmp_path / "b")
    assert (manifest.architecture.loops, manifest.architecture.rank, manifest.provenance["init"]) == (3, 4, "stepwise")
    assert verify(tmp_path / "b", source=source).ok


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 16])
def test_a_true_bundle_is_proved_at_every_depth(recursive: Path, tmp_path: Path, chats: Path, bits: int) -> None:
    export(recursive, tmp_path / "b", bits=bits)
    report = verify(tmp_path / "b", source=recursive, text=chats)
    assert report.ok and report.hashes_ok and report.positions >= 2000, report.problem
    assert [depth.depth for depth in report.depths] == [1, 2, 3]


@pytest.mark.slow
def test_text_is_sampled_from_the_source_where_none_is_given(bundle: Path, recursive: Path) -> None:
    report = verify(bundle, source=recursive)
    assert report.ok and report.positions >= 2000


@pytest.mark.slow
def test_a_bundle_of_other_weights_is_not_proved(recursive: Path, bundle: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(recursive, tmp_path / "changed"))
    weights = load_file(changed / "model.safetensors")
    weights["model.block.3.mlp.down_proj.lora_B"][2] += 0.01  # the third depth's adapter of one layer
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    report = verify(bundle, source=changed)
    assert not report.ok and report.hashes_ok
    assert report.problem is not None and report.problem.startswith("depth 3: a logit differs")
    assert report.depths[1].max_abs_logit_error < 1e-3 < report.depths[2].max_abs_logit_error


@pytest.mark.slow
def test_loosened_tolerances_are_recorded(recursive: Path, tmp_path: Path, chats: Path) -> None:
    export(recursive, tmp_path / "b", bits=4)
    strict = verify(tmp_path / "b", source=recursive, text=chats)
    assert not strict.ok  # random weights do not survive 4 bits
    assert Manifest.read(tmp_path / "b").verification is None
    loose = verify(tmp_path / "b", source=recursive, text=chats, loosened=Tolerance(kl=50.0, top1_agreement=0.0))
    assert loose.ok
    recorded = Manifest.read(tmp_path / "b").verification
    assert recorded is not None and recorded["loosened"]["kl"] == 50.0
    assert verify(tmp_path / "b").hashes_ok


def test_hashes_are_checked_first(bundle: Path, recursive: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    with (damaged / "model.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xff")
    report = verify(damaged, source=recursive)
    assert not report.ok and not report.hashes_ok and report.depths == ()


def test_another_models_checkpoint_is_not_a_source(bundle: Path, make_recursive, tmp_path: Path) -> None:
    with pytest.raises(rrt_edge.BadInputError, match="is not the source of this bundle"):
        verify(bundle, source=make_recursive(loops=2))


def test_short_text_is_refused(bundle: Path, recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The cat.")
    with pytest.raises(rrt_edge.BadInputError, match="needs at least 2000"):
        verify(bundle, source=recursive, text=tmp_path / "short.txt")


def test_an_interrupted_export_leaves_the_old_bundle_and_nothing_else(
    recursive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(recursive, tmp_path / "b", bits=32)
    before = Manifest.read(tmp_path / "b")

    def interrupted(*args: object, **kwargs: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(recursive, tmp_path / "b", bits=4)
    with pytest.raises(KeyboardInterrupt):
        export(recursive, tmp_path / "new", bits=4)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert Manifest.read(tmp_path / "b") == before


def test_a_killed_exports_leavings_are_cleared_by_the_next(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / ".b.partial").mkdir()
    (tmp_path / ".b.partial" / "model.onnx.data").write_bytes(b"half")
    export(recursive, tmp_path / "b", bits=32)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_something_that_is_no_bundle_is_not_replaced(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(rrt_edge.BadInputError, match="exists and is not a bundle"):
        export(recursive, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.skipif(sys.platform != "linux", reason="a full disk is simulated with a small tmpfs")
def test_a_full_disk_is_one_line_and_leaves_nothing(recursive: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        for write in (
            lambda: export(recursive, place / "b", bits=32),
            lambda: rrt_edge.convert(_source_of(recursive), place / "c"),
        ):
            with pytest.raises(rrt_edge.RRTEdgeError, match="the disk is full"):
                write()
            assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _source_of(recursive: Path) -> Path:
    """A plain checkpoint of the same size, made beside the recursive one."""
    from transformers import LlamaForCausalLM

    folder = recursive.parent / "plain"
    config = rrt_edge.RecursiveConfig.from_pretrained(recursive).text_config
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_place_under_a_file_is_one_line(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(rrt_edge.BadInputError, match="cannot be written"):
        export(recursive, tmp_path / "file" / "b")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder_is_one_line(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(rrt_edge.BadInputError, match="cannot be written"):
        export(recursive, tmp_path / "locked" / "b")


def test_a_checkpoint_without_tokenizer_is_refused(recursive: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(recursive, tmp_path / "copied"))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(rrt_edge.BadInputError, match=r"holds no tokenizer\.json"):
        export(copied, tmp_path / "b")


def test_eight_bit_parts(recursive: Path, tmp_path: Path) -> None:
    plain = export(recursive, tmp_path / "a", bits=8).weight_bytes
    mixed = export(recursive, tmp_path / "b", bits=4, eight_bit=["lora"]).weight_bytes
    assert mixed["lora"] == plain["lora"] and mixed["block"] < plain["block"]
    with pytest.raises(rrt_edge.BadInputError, match="eight-bit 'nose': choose from block, lora"):
        export(recursive, tmp_path / "c", eight_bit=["nose"])
    assert np.isclose(plain["block"] / mixed["block"], 8 / 4.6, rtol=0.1)


def test_a_tied_embedding_and_head_are_one_matrix_at_any_bits(tmp_path: Path) -> None:
    random_model("qwen2", hidden_size=96).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)

    def made(name: str, eight_bit: list[Part] | None) -> dict[str, int]:
        report = export(tmp_path / "source", tmp_path / name, loops=1, eight_bit=eight_bit)
        parts = Manifest.read(tmp_path / name).quantization.parts
        assert parts["embedding"] == parts["head"] == (4 if eight_bit == [] else 8)
        return report.weight_bytes

    usual, none = made("usual", None), made("none", [])
    assert made("head", ["head"]) == made("embedding", ["embedding"]) == usual
    assert "head" not in usual and none["embedding"] == 300 * 3 * (16 + 4) and usual["embedding"] == 300 * 3 * (32 + 4)
    ours, theirs = (Host(tmp_path / name, 1).run([[5, 6, 7]])[0][0] for name in ("none", "usual"))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["x", -1, 300, [1, "x"], [[1]], 1.5, True])
def test_an_end_that_is_no_token_is_named(recursive: Path, tmp_path: Path, name: str, value: object) -> None:
    folder = shutil.copytree(recursive, tmp_path / "recursive")
    (folder / "generation_config.json").unlink()
    fields = json.loads((folder / name).read_text()) if name == "config.json" else {}
    owner = fields.get("text_config", fields)
    owner["eos_token_id"] = value
    (folder / name).write_text(json.dumps(fields))
    with pytest.raises(rrt_edge.BadInputError, match=rf"{name}: .*eos_token_id") as caught:
        export(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value) and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", ""), ("tokenizer.json", "null"), ("tokenizer.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"), ("tokenizer_config.json", "[" * 100_000), ("chat_template.jinja", "{% if %}"),
    ],
)  # fmt: skip
def test_what_no_bundle_could_be_loaded_with_is_not_exported(
    recursive: Path, tmp_path: Path, name: str, text: str
) -> None:
    folder = Path(shutil.copytree(recursive, tmp_path / "recursive"))
    (folder / name).write_text(text)
    with pytest.raises(rrt_edge.BadInputError) as caught:
        export(folder, tmp_path / "bundle")
    assert str(caught.value).startswith(f"{folder / name}: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()
