"""The bytes of single tokens against what the tokenizer decodes from all of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rrt_edge.runtime.decoding.token_bytes import TokenBytes, in_text

TEXTS = ["Lisbon lies on the Tagus.", "the quick brown fox", "Grüße, 日本 🙂"] * 10
SPECIAL = ["<s>", "</s>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: a space before the text, bytes for characters that are no token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, limit_alphabet=40)
    tokenizer.train_from_iterator(TEXTS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_bytes_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    bytes_of = TokenBytes(tokenizer)
    joined = b"".join(map(bytes_of, tokenizer.encode(text, add_special_tokens=False).ids))
    assert joined.decode().removeprefix(" " if kind == "byte fallback" else "") == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_token_may_be_a_part_of_a_character(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    bytes_of = TokenBytes(tokenizer)
    ids = tokenizer.encode("🤖", add_special_tokens=False).ids
    parts = [bytes_of(token) for token in ids]
    assert b"".join(parts).strip() == "🤖".encode() and len(parts) > 1
    assert in_text(parts[-1]) == "\\x96"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_have_their_names_and_what_is_no_token_has_nothing(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    bytes_of = TokenBytes(tokenizer)
    assert bytes_of(tokenizer.token_to_id("</s>")) == b"</s>"
    assert bytes_of(tokenizer.get_vocab_size() + 5) == b""
