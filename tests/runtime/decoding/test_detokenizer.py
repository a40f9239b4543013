"""Streaming text and stop strings: decoding all tokens at once, and `str.find`, as the judges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rrt_edge.runtime.decoding.detokenizer import WINDOW, TextStream

BROKEN = "\N{REPLACEMENT CHARACTER}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁the", "▁cat", "s", "e", "h", "n", "a", "t", "c", "日本"]
SENTENCES = ["the cat sees the hen", "日本語 café 日本", "👩‍🚀 flies, naïve"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def llama() -> Tokenizer:
    """BPE with byte fallback that decodes in steps, as Llama 2's."""
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with byte fallback and the Metaspace decoder."""
    pieces = [("<unk>", 0.0), *((piece, -9.0) for piece in BYTES), *((piece, -2.0) for piece in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "llama": llama(), "unigram": unigram()}
TEXTS = st.text(
    st.one_of(st.sampled_from("the cans  日本é🙂👩‍🚀\n" + BROKEN), st.characters(codec="utf-8")), max_size=40
)


class Counting:
    """A tokenizer that notes how many tokens each decoding takes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.sizes = tokenizer, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, ids: list[int]) -> str:
        self.sizes.append(len(ids))
        text: str = self.tokenizer.decode(ids)
        return text


def number(tokenizer: Tokenizer, piece: str) -> int:
    found = tokenizer.token_to_id(piece)
    assert found is not None
    return found


def streamed(tokenizer: Tokenizer | Counting, ids: list[int]) -> str:
    stream = TextStream(tokenizer)  # type: ignore[arg-type]
    return "".join(stream.push(token) for token in ids) + stream.flush()


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.data())
def test_pieces_join_to_the_decoded_text_with_special_tokens_anywhere(
    name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    special, unknown = number(tokenizer, "<s>"), 10**6
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids)
    for token in data.draw(st.lists(st.sampled_from([special, unknown]), max_size=4)):
        ids.insert(data.draw(st.integers(0, len(ids))), token)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    # Compared without the added tokens: byte fallback decodes the bytes of one character only side by side.
    assert "".join(pieces) + stream.flush() == whole
    if BROKEN not in whole:
        assert BROKEN not in "".join(pieces)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_of_a_byte_level_tokenizer_join_to_the_decoded_text(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte level"]
    awkward = [tokenizer.encode(character).ids for character in ("🙂", "é", "語", "a", BROKEN)]
    parts = st.one_of(
        st.sampled_from(awkward),
        st.sampled_from(awkward).map(lambda ids: ids[:1]),
        st.integers(0, tokenizer.get_vocab_size() - 1).map(lambda token: [token]),
    )
    ids = [token for part in data.draw(st.lists(parts, max_size=60)) for token in part]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["llama", "unigram"])
@pytest.mark.parametrize("skipped", ["<s>", None])
def test_a_skipped_token_takes_no_space_with_it(name: str, skipped: str | None) -> None:
    tokenizer = TOKENIZERS[name]
    between = number(tokenizer, skipped) if skipped else 10**6
    ids = [number(tokenizer, "▁the"), between, number(tokenizer, "▁cat")]
    assert streamed(tokenizer, ids) == "the cat"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_comes_with_its_last_byte(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("🙂").ids
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert len(ids) >= 3
    assert "".join(pieces[:-1]) == ""
    assert pieces[-1] == "🙂"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_a_character_comes_broken_at_the_end_only(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode("🙂").ids[:-1]]
    assert "".join(pieces) == ""
    assert set(stream.flush()) == {BROKEN}
    assert stream.flush() == ""


def test_whole_characters_come_while_the_next_is_unfinished() -> None:
    tokenizer = Tokenizer(models.BPE({"aÃ": 0, "©Ã": 1, "©": 2}, []))  # Ã and © stand for the two bytes of é
    tokenizer.decoder = decoders.ByteLevel()
    stream = TextStream(tokenizer)
    ids = [0] + [1] * 3 * WINDOW + [2]
    assert [stream.push(token) for token in ids] == ["a"] + ["é"] * (3 * WINDOW + 1)
    assert stream.flush() == ""


def test_broken_bytes_leave_the_characters_beside_them_whole() -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = [number(tokenizer, piece) for piece in ("<0xC3>", "<0xA9>", "<0xFF>", "a")]
    assert tokenizer.decode(ids) == BROKEN * 3 + "a"
    assert streamed(tokenizer, ids) == "é" + BROKEN + "a"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["the cat " * 200, "日🙂" * 200, "broken"])
def test_a_token_costs_the_same_however_long_the_text(name: str, text: str) -> None:
    tokenizer = Counting(TOKENIZERS[name])
    ids = tokenizer.encode(text).ids
    if text == "broken":
        ids = tokenizer.encode("🙂").ids[-1:] * 500
    assert len(ids) >= 200
    streamed(tokenizer, ids)
    assert max(tokenizer.sizes) <= 2 * WINDOW + 2
    assert len(tokenizer.sizes) <= 4 * len(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab é", max_size=24), stop=st.text("ab é", min_size=1, max_size=5))
def test_one_stop_string_cuts_where_find_says(text: str, stop: str) -> None:
    for tokenizer in (TOKENIZERS["byte level"], TOKENIZERS["llama"]):
        stream = TextStream(tokenizer, [stop])
        shown = ""
        for token in tokenizer.encode(text).ids:
            shown += stream.push(token)
            assert text.startswith(shown)
        start = text.find(stop)
        assert stream.stopped == (start >= 0)
        assert shown + stream.flush() == (text if start < 0 else text[:start])


@settings(max_examples=300, deadline=None)
@given(text=st.text("abc", max_size=24), stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_of_several_stop_strings_the_first_complete_one_counts_however_tokens_fall(text: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS["byte level"]
    spans = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(spans)[1]] if spans else text
    single = [token for character in text for token in tokenizer.encode(character).ids]
    for ids in (tokenizer.encode(text).ids, single):
        stream = TextStream(tokenizer, stops)
        assert "".join(stream.push(token) for token in ids) + stream.flush() == expected
        assert stream.stopped == bool(spans)


def test_nothing_follows_a_stop_string_and_its_beginning_is_held_back() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(tokenizer, ["END"])
    pieces = [stream.push(number(tokenizer, character)) for character in "aEbENDc"]
    assert pieces == ["a", "", "Eb", "", "", "", ""]
    assert stream.stopped
    assert stream.flush() == ""


def test_a_held_beginning_comes_at_the_end_when_no_stop_string_did() -> None:
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(tokenizer, ["END"])
    assert "".join(stream.push(number(tokenizer, character)) for character in "aEN") == "a"
    assert stream.flush() == "EN"
    assert not stream.stopped
