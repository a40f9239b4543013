"""Tokenizers that fail at a first text: `verify` tries one in a process of its own, and says so in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime.bundle import tokenizer_trial
from rrt_edge.runtime.check import check
from rrt_edge.runtime.system.children import Limits
from rrt_edge.runtime.system.files import sha256
from tests.conftest import PREBUILT
from tests.manifests import edit_manifest


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def begin_with(token: int) -> dict[str, Any]:
    special = {"<s>": {"id": "<s>", "ids": [token], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"pre_tokenizer": split(r"(a+)+\z")}, "retry-limit"),
    "decoder": ({"decoder": {"type": "Strip", "content": "a", "start": 1 << 60, "stop": 1 << 60}}, "Panic"),
    "unknown": ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["<pad>", 0], ["<eos>", 0], ["a", 0]]}}, "unk"),
    "growth": ({"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 900}}, "908 characters"),
    "beyond": ({"post_processor": begin_with(300)}, "token id 300 is not among the model's 300 tokens"),
    "table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Panic"),
}


def with_tokenizer(folder: Path, parts: dict[str, Any]) -> Path:
    bundle = Path(shutil.copytree(PREBUILT, folder / "bundle"))
    path = bundle / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **parts}), "utf-8")
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit_manifest(bundle, lambda fields: fields["files"].update({"tokenizer.json": entry}))
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILING)
def test_verify_says_what_a_tokenizer_fails_at(tmp_path: Path, case: str) -> None:
    parts, words = FAILING[case]
    bundle = with_tokenizer(tmp_path, parts)
    report = check(bundle)
    assert not report.ok and report.problem is not None and "\n" not in report.problem
    assert report.problem.startswith(f"{bundle / 'tokenizer.json'}: ") and words in report.problem


def test_a_tokenizer_that_takes_too_much_memory_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_tokenizer(tmp_path, FAILING["growth"][0])
    monkeypatch.setattr(tokenizer_trial, "LIMITS", Limits(seconds=30, memory_bytes=1 << 20))
    report = check(bundle)
    assert report.problem is not None and "takes more than the 1 MiB of memory that are allowed" in report.problem
