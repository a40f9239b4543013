"""Tokenizers of bundles that somebody hostile made: what they may make of a text is bounded before one is encoded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from rrt_edge.runtime import BundleError
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer

Edit = Callable[[dict[str, Any]], None]


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def set_to(name: str, part: dict[str, Any]) -> Edit:
    return lambda fields: fields.update({name: part})


def in_steps(*parts: dict[str, Any]) -> Edit:
    return set_to("normalizer", {"type": "Sequence", "normalizers": list(parts)})


def long_token(fields: dict[str, Any]) -> None:
    token = {"id": 10**6, "content": "x" * 1001, "special": True}
    fields["added_tokens"].append({**token, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)})


HOSTILE: dict[str, tuple[Edit, str]] = {
    "long": (set_to("normalizer", replace("a", "x" * 10_000_000)), "normalizer: content has 10,000,000 characters"),
    "steps": (in_steps(replace("a", "b" * 100), replace("b", "c" * 100)), "normalizer: makes too much of a text"),
    "many": (in_steps(*[replace("a", "aa")] * 10), "normalizer: makes too much of a text"),
    "nested": (in_steps(replace("a", "b" * 900), {"type": "Sequence", "normalizers": [replace("b", "cc")]}),
               "normalizer: makes too much of a text"),
    "prepend": (set_to("normalizer", {"type": "Prepend", "prepend": "x" * 5000}), "normalizer: prepend has 5,000"),
    "decoder": (set_to("decoder", replace("a", "x" * 1_000_000)), "decoder: content has 1,000,000 characters"),
    "pattern": (set_to("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a?" * 600}, "behavior": "Isolated",
                                         "invert": False}), "pre_tokenizer: Regex has 1,200 characters"),
    "template": (set_to("post_processor", {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 5000,
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}),
        "post_processor: makes too much of a text|cannot be read"),
    "token": (long_token, "added_tokens: one has 1,001 characters"),
}  # fmt: skip


def written(bundle: Path, folder: Path, edit: Edit) -> Path:
    fields = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    edit(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields), "utf-8")
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_what_makes_too_much_of_a_text_is_refused(bundle: Path, tmp_path: Path, case: str) -> None:
    edit, message = HOSTILE[case]
    with pytest.raises(BundleError, match=message) as caught:
        read_tokenizer(written(bundle, tmp_path, edit))
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


def test_padding_and_truncation_of_the_file_are_left_out(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "tokenizer.json", tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    padded = Tokenizer.from_str(plain.to_str())
    padded.enable_padding(length=1 << 31)
    padded.enable_truncation(2)
    padded.save(str(tmp_path / "tokenizer.json"))
    text = "a text of more than two tokens"
    assert read_tokenizer(tmp_path).encode(text).ids == plain.encode(text).ids


def test_what_real_tokenizers_have_is_read(bundle: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Replace("…", "..."), normalizers.NFKC()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()])
    tokenizer.post_processor = processors.TemplateProcessing("a $A", "a $A b $B:1", [("a", 2), ("b", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("x … y").ids == tokenizer.encode("x … y").ids


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((256 << 20) + 1)  # takes no room on the disk
    with pytest.raises(BundleError, match="has more than 256 MiB"):
        read_tokenizer(tmp_path)
