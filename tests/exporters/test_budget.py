"""A size for the whole bundle: kept, spent, and where 4 bits cost most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import Tolerance, export, verify
from rrt_edge.exporters.options import ExportOptions
from rrt_edge.runtime import Manifest
from rrt_edge.runtime.system.options import options_in
from tests.checkpoints import TEXT, save_tokenizer
from tests.families import random_model
from tests.host import Host

IDS = np.random.default_rng(5).integers(2, 300, 24).tolist()
SLACK = 9000  # bytes that are set aside for the manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text * 20}) + "\n" for text in TEXT))
    return path


def save(case: str, folder: Path, loops: int = 2, rank: int = 4, **changes: Any) -> Path:
    fields = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2 * loops, **changes}
    random_model(case, **fields).save_pretrained(folder / "source")
    save_tokenizer(folder / "source", 300)
    rrt_edge.convert(folder / "source", folder / "recursive", loops=loops, rank=rank)
    return folder / "recursive"


@torch.no_grad()
def torch_logits(folder: Path) -> np.ndarray:
    return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits[0].numpy()


def error(bundle: Path, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(Host(bundle, 1).run([IDS])[0][0] - theirs))


@pytest.mark.slow
def test_keys_and_values_that_are_projected_apart_have_bits_of_their_own(tmp_path: Path, data: Path) -> None:
    recursive = save("llama", tmp_path, rank=0)
    model = AutoModelForCausalLM.from_pretrained(recursive)
    model.config.kv_rule = "propagate"
    model.save_pretrained(recursive)
    least = export(recursive, tmp_path / "least", eight_bit=[], data=data).bytes
    export(recursive, tmp_path / "more", data=data, max_size=least + 3 * SLACK)
    raised = Manifest.read(tmp_path / "more").quantization.eight_bit
    assert raised is not None and len(raised["v"]) > len(raised.get("qk", []))
    any_error = Tolerance(kl=50.0, top1_agreement=0.0)
    few, more = (
        verify(tmp_path / name, source=recursive, loosened=any_error).depths[-1].kl for name in ("least", "more")
    )
    assert more < few


@pytest.mark.parametrize(("case", "loops", "rank"), [("qwen2", 2, 4), ("gpt_neox", 1, 0), ("phi3", 2, 2)])
def test_a_size_is_kept_and_spent(tmp_path: Path, data: Path, case: str, loops: int, rank: int) -> None:
    """Rows of several projections in one matrix of the checkpoint, products apart, adapters: every graph is near torch,
    the nearer the larger."""
    recursive = save(case, tmp_path, loops, rank, **({"head_dim": 16} if case == "phi3" else {}))
    theirs = torch_logits(recursive)
    least = export(recursive, tmp_path / "least", eight_bit=[], data=data).bytes
    most = export(recursive, tmp_path / "most", bits=8, data=data).bytes
    errors = [error(tmp_path / "least", theirs)]
    for share in (0.3, 0.7):
        size = int(least + SLACK + share * (most - least))
        report = export(recursive, tmp_path / f"{share}", data=data, max_size=size)
        assert size - 2 * SLACK < report.bytes <= size
        errors.append(error(tmp_path / f"{share}", theirs))
        said = Manifest.read(tmp_path / f"{share}").quantization
        raised = {name: len(layers) for name, layers in (said.eight_bit or {}).items()}
        spent = {kind.kind: kind for kind in report.spent}
        assert sum(raised.values()) and said.bits == said.parts["block"] == 4
        assert all(
            spent["qkv" if name in ("qk", "v") and "qkv" in spent else name].raised == count
            for name, count in raised.items()
        )
        assert (said.parts["lora"] == 8) == ("lora" in spent and spent["lora"].raised == 1)
        assert (said.parts["embedding"] == 8) == (spent["embedding"].raised == 1)
    errors.append(error(tmp_path / "most", theirs))
    assert errors[-1] < errors[2] < errors[0] and errors[1] < errors[0]


def test_with_room_for_all_it_is_the_bundle_at_8_bits(tmp_path: Path, data: Path) -> None:
    recursive = save("llama", tmp_path)
    eight = export(recursive, tmp_path / "eight", bits=8, data=data)
    report = export(recursive, tmp_path / "all", data=data, max_size=eight.bytes + 4 * SLACK)
    assert all(kind.raised == kind.count and kind.left == 0 for kind in report.spent)
    assert report.weight_bytes == eight.weight_bytes and report.unshared_weight_bytes == eight.unshared_weight_bytes
    ours, theirs = (Host(tmp_path / name, 1).run([IDS])[0][0] for name in ("all", "eight"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    again = export(recursive, tmp_path / "again", data=data, max_size=eight.bytes + 4 * SLACK)
    assert again.spent == report.spent
    files = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("all", "again")]
    assert files[0] == files[1]


def test_too_little_says_what_the_smallest_takes(tmp_path: Path, data: Path) -> None:
    recursive = save("llama", tmp_path)
    with pytest.raises(rrt_edge.BadInputError) as caught:
        export(recursive, tmp_path / "b", data=data, max_size=100_000)
    message = str(caught.value)
    assert message.startswith("max-size 0.10MB: too little for this model; all at 4 bits in blocks of 32 it takes ")
    named = options_in(ExportOptions)["max_size"].read(message.rpartition(" ")[2])
    assert export(recursive, tmp_path / "b", data=data, max_size=named).bytes <= named


def test_sizes_are_read_as_people_write_them() -> None:
    option = options_in(ExportOptions)["max_size"]
    assert [option.read(text) for text in ("120MB", "1.5 GB", "98kB", "2000", 5)] == [
        120_000_000,
        1_500_000_000,
        98_000,
        2000,
        5,
    ]
    for wrong in ("much", "-3MB", "12MiB", True):
        with pytest.raises(rrt_edge.BadInputError, match="max-size"):
            option.read(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max-size needs data"),
        ({"data": "texts.jsonl", "bits": 8}, "max-size goes with bits 4"),
        ({"data": "texts.jsonl", "eight_bit": []}, "max-size chooses what has 8 bits; leave out eight-bit"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=message):
        export(tmp_path / "nowhere", tmp_path / "bundle", max_size=10**9, **options)
