"""Streaming text and choosing tokens, against tokenizers and transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rrt_edge.runtime import BadInputError, RRTEdgeError, Sampling
from rrt_edge.runtime.sampling import Sampler, distribution, penalised
from rrt_edge.runtime.text import TextStream


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"])
    tokenizer.train_from_iterator(["the cat sees the hen", "日本語 café"], trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Metaspace with byte fallback, as Llama's tokenizer decodes."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "▁cat",
        "s",
        "e",
        "h",
        "n",
        "a",
        "t",
        "c",
    ]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "sentencepiece": sentencepiece_like()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.sampled_from("the cans 日本é🙂👩‍🚀"), st.characters(codec="utf-8")),
        min_size=1,
        max_size=30,
    )
)
def test_pieces_join_to_the_decoded_text_and_split_no_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).ids
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    decoded = tokenizer.decode(ids)
    assert "".join(pieces) + stream.flush() == decoded
    if "\N{REPLACEMENT CHARACTER}" not in decoded:
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("🙂!").ids
    stream = TextStream(tokenizer)
    assert len(ids) == 5
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂", "!"]


def test_bytes_that_are_no_character_come_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(tokenizer)
    assert stream.push(tokenizer.encode("🙂").ids[0]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab ", max_size=20),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_where_find_says(text: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(tokenizer, stops)
    given_out = "".join(stream.push(token) for token in tokenizer.encode(text).ids) + stream.flush()
    # The stream stops at the first stop string to be complete, as a reader of single characters would see it.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert given_out == text and not stream.stopped
    else:
        assert stream.stopped and not any(stop in given_out for stop in stops)
        assert text.startswith(given_out) and len(given_out) < min(ends)


def theirs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), temperature=st.floats(0.1, 3), top_k=st.integers(0, 50), top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 1), ties=st.booleans(),
)  # fmt: skip
def test_the_distribution_is_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, ties: bool
) -> None:
    logits = np.random.default_rng(seed).normal(size=40).astype(np.float32) * 3
    if ties:
        logits[::3] = logits[0]
        top_p = 1.0  # which of equal tokens top-p drops is not defined
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(distribution(logits, sampling), theirs(logits, sampling), atol=1e-9)


def test_repetition_penalty_is_transformers() -> None:
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32)
    history = [3, 5, 5, 39]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([history]), torch.tensor(logits)[None])[0]
    np.testing.assert_allclose(penalised(logits, history, 1.3), expected.numpy(), rtol=1e-6)


def test_samples_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    counts = np.bincount([sampler.pick(logits, []) for _ in range(4000)], minlength=4)
    chi_square = (np.square(counts - 4000 * np.exp(logits)) / (4000 * np.exp(logits))).sum()
    assert chi_square < 16.3  # 0.999 quantile at 3 degrees of freedom


def test_damaged_logits_are_an_error() -> None:
    with pytest.raises(RRTEdgeError, match="not-a-number"):
        Sampler(Sampling()).pick(np.array([0, np.nan], np.float32), [])


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("min_p", 2.0), ("repetition_penalty", 0.0), ("seed", -1), ("max_tokens", 0), ("stop", ("",)),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BadInputError, match=field.replace("_", "-")):
        Sampling(**{field: value})  # type: ignore[arg-type]
