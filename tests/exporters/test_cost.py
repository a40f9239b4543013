"""What export says that the bits cost: transformers' figures of the same texts, and what `verify` holds a bundle to."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.exporters import export, verify
from rrt_edge.exporters.cost import ROWS, WINDOW, set_apart
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.check import load_checked
from rrt_edge.runtime.running.runner import Call
from tests.families import random_model
from tests.manifests import edit_manifest

NAMES = ("cat", "hen", "dog", "fox", "cow", "ox")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [f"The {one} sees the {two}. " * 8 for one in NAMES for two in NAMES if one != two]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def test_every_ninth_text_is_set_apart() -> None:
    texts = [[number] * 200 for number in range(20)]
    fitted, windows = set_apart(texts)
    assert [ids[0] for ids in fitted] == [number for number in range(20) if number not in (8, 17)]
    assert [(ids[0], len(ids)) for ids in windows] == [(8, WINDOW), (8, 72), (17, WINDOW), (17, 72)]
    assert set_apart(texts[:4]) == (texts[:3], [texts[3][:WINDOW], texts[3][WINDOW:]])
    assert set_apart(texts[:1]) == (texts[:1], [])
    assert set_apart([[1], [2]]) == ([[1]], [])


def test_the_cost_is_that_of_transformers_logits(recursive: Path, data: Path, tmp_path: Path) -> None:
    report = export(recursive, tmp_path / "bundle", bits=4, data=data)
    tokenizer = AutoTokenizer.from_pretrained(recursive)
    texts = [tokenizer.encode(json.loads(line)["text"]) for line in data.read_text().splitlines()]
    windows = [ids[at : at + WINDOW] for ids in texts[8::9] for at in range(0, len(ids), WINDOW)]
    model = AutoModelForCausalLM.from_pretrained(recursive, dtype=torch.float32).eval()
    folder = Path(report.bundle)
    manifest = Manifest.read(folder)
    _, runner = load_checked(folder, manifest)
    assert runner is not None and report.cost is not None and manifest.cost == report.cost
    losses, exact, kl, same = [], [], [[], [], []], [[], [], []]
    for ids in windows:
        with torch.no_grad():
            theirs = model(torch.tensor([ids]), output_depths=True).depth_logits
        for depth in range(3):
            binding, cache, pieces = runner.bind(), runner.new_cache(), []
            for start in range(0, len(ids), ROWS):  # a product of 4 bits depends a little on how many rows it has
                some = np.array(ids[start : start + ROWS], np.int64)
                call = Call(some, start, 1, depth + 1, logit_rows=tuple(range(len(some))))
                pieces.append(torch.from_numpy(runner.run(binding, cache, call).logits.copy()))
            ours = torch.cat(pieces).double()
            p, q = (torch.distributions.Categorical(logits=logits.double()) for logits in (theirs[depth][0], ours))
            kl[depth] += torch.distributions.kl_divergence(p, q).tolist()
            same[depth] += (p.logits.argmax(-1) == q.logits.argmax(-1)).tolist()
        targets = torch.tensor(ids[1:])
        losses += torch.nn.functional.cross_entropy(ours[:-1], targets, reduction="none").tolist()
        exact += torch.nn.functional.cross_entropy(theirs[-1][0, :-1].double(), targets, reduction="none").tolist()
    runner.close()
    measured = report.cost
    assert measured.positions == sum(map(len, windows))
    for depth in range(3):
        assert measured.depths[depth].kl == pytest.approx(np.mean(kl[depth]), rel=1e-3, abs=2e-6)
        assert measured.depths[depth].top1_agreement == pytest.approx(np.mean(same[depth]), abs=1e-5)
    assert measured.source_perplexity == pytest.approx(math.exp(np.mean(exact)), rel=1e-4)
    assert measured.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-3)
    assert measured.ratio == pytest.approx(measured.perplexity / measured.source_perplexity)


@pytest.mark.parametrize("family", ["gemma2", "granite", "gpt_neox", "phi3"])
def test_logits_that_are_scaled_or_capped_are_the_sources(
    source: Path, data: Path, tmp_path: Path, family: str
) -> None:
    """8 bits cost next to nothing, whatever stands behind the block."""
    random_model(family).save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "source")
    measured = export(tmp_path / "source", tmp_path / "bundle", bits=8, loops=1, data=data).cost
    assert measured is not None and measured.depths[0].kl < 0.02 and measured.ratio == pytest.approx(1, abs=0.02)


def test_verify_holds_a_bundle_to_its_cost(recursive: Path, data: Path, tmp_path: Path) -> None:
    bundle = Path(export(recursive, tmp_path / "bundle", bits=4, data=data).bundle)
    manifest = Manifest.read(bundle)
    assert manifest.cost is not None
    report = verify(bundle, source=recursive)
    assert report.tolerance.kl == pytest.approx(2 * max(depth.kl for depth in manifest.cost.depths) + 0.001)
    small = dataclasses.replace(
        manifest.cost, depths=tuple(dataclasses.replace(d, kl=0.0) for d in manifest.cost.depths)
    )
    dataclasses.replace(manifest, cost=small).write(bundle)
    strict = verify(bundle, source=recursive)
    assert not strict.ok and strict.problem is not None and "allowed 0.001" in strict.problem


def test_one_text_is_too_few_to_measure(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The cat sees the hen. " * 9)
    assert export(recursive, tmp_path / "bundle", bits=4, data=tmp_path / "one.txt").cost is None


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("positions", 0, "positions.*whole number from 1"),
        ("perplexity", -1.0, "perplexity.*number above 0"),
        ("depths", [], "cost.depths must be a list of 3 objects"),
        ("depths", [{"kl": -1, "top1_agreement": 1}] * 3, "cost.depths.kl must be a number from 0"),
        ("depths", [{"kl": 0.1, "top1_agreement": 2}] * 3, "cost.depths.top1_agreement must be a number from 0 to 1"),
    ],
)
def test_an_impossible_cost_is_named(bundle: Path, tmp_path: Path, field: str, value: object, message: str) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    depths = [{"kl": 0.1, "top1_agreement": 0.9}] * 3
    cost = {"positions": 9, "depths": depths, "perplexity": 2.0, "source_perplexity": 1.5}
    edit_manifest(tmp_path / "bundle", lambda fields: fields.update(cost=cost))
    measured = Manifest.read(tmp_path / "bundle").cost
    assert measured is not None and measured.depths[0].kl == 0.1
    edit_manifest(tmp_path / "bundle", lambda fields: fields["cost"].update({field: value}))
    with pytest.raises(rrt_edge.BundleError, match=message):
        Manifest.read(tmp_path / "bundle")
