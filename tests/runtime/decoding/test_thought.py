"""Thoughts told from answers as tokens come: the whole text, cut at the markers, as the judge."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from rrt_edge.runtime.decoding.detokenizer import TextStream
from rrt_edge.runtime.decoding.thought import CLOSE, CLOSING, OPEN, ReplyText, Thinking, has_markers, opens_thought
from tests.runtime.decoding.test_detokenizer import byte_level, llama, unigram


def with_markers(tokenizer: Tokenizer, special: bool) -> Tokenizer:
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in (OPEN, CLOSE)])
    return tokenizer


TOKENIZERS = {
    "byte level, in letters": byte_level(),
    "byte level, ordinary": with_markers(byte_level(), special=False),
    "byte level, special": with_markers(byte_level(), special=True),
    "llama, ordinary": with_markers(llama(), special=False),
    "unigram, special": with_markers(unigram(), special=True),
}
WORDS = st.lists(
    st.sampled_from(["the", "cat", " ", "\n", "<", "<th", "</", "think", ">", "日本", "é", "🙂"]), max_size=12
)
TEXTS = WORDS.map("".join)


def cut(text: str, is_open: bool) -> tuple[str, str]:
    """The thought and the answer of a whole reply."""
    start = text.lstrip()
    if not is_open and not start.startswith(OPEN):
        return "", text
    thought, marker, answer = (text if is_open else start.removeprefix(OPEN)).partition(CLOSE)
    return (thought.strip(), answer.lstrip()) if marker else (thought.lstrip(), "")


def streamed(name: str, ids: list[int], is_open: bool = False, stop: tuple[str, ...] = ()) -> tuple[str, str, bool]:
    """The thought, the answer, and whether a stop string has come."""
    tokenizer = TOKENIZERS[name]
    thinking = Thinking.of(tokenizer, tokenizer.encode(CLOSING, add_special_tokens=False).ids)
    text = ReplyText(TextStream(tokenizer, stop), thinking, is_open)
    pieces = [*(text.push(token) for token in ids), text.end()]
    return "".join(piece.thought or "" for piece in pieces), "".join(piece.answer for piece in pieces), text.stopped


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(before=st.sampled_from(["", " ", "\n\n", "x"]), thought=TEXTS, answer=TEXTS, data=st.data())
def test_any_reply_is_cut_where_its_whole_text_is(
    name: str, before: str, thought: str, answer: str, data: st.DataObject
) -> None:
    """Markers of one token or of many, a prompt that opened the thought, thoughts that never end, and none at all."""
    is_open, ended = data.draw(st.booleans()), data.draw(st.booleans())
    text = ("" if is_open else before + data.draw(st.sampled_from([OPEN, "", "<think"]))) + thought
    text += CLOSE + answer if ended else ""
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    whole = TOKENIZERS[name].decode(ids, skip_special_tokens=False)
    seen, said, _ = streamed(name, ids, is_open)
    expected = cut(whole, is_open)
    if "special" in name:
        assume(OPEN not in thought + answer and CLOSE not in thought + answer)
        if not is_open and not whole.lstrip().startswith(OPEN):  # where no thought is, special tokens are skipped
            expected = ("", TOKENIZERS[name].decode(ids))
    assert (seen, said) == expected


def test_the_markers_are_shown_nowhere_and_their_tokens_are_of_the_thought() -> None:
    tokenizer = TOKENIZERS["byte level, special"]
    text = ReplyText(TextStream(tokenizer), Thinking.of(tokenizer, []))
    ids = tokenizer.encode(f"{OPEN}\nthe cat\n{CLOSE}\n\nhen {OPEN} s", add_special_tokens=False).ids
    pieces = [*(text.push(token) for token in ids), text.end()]
    first, close = 0, ids.index(tokenizer.token_to_id(CLOSE))
    assert [piece.thought is not None for piece in pieces] == [first <= at <= close for at in range(len(pieces))]
    assert (text.opened, text.closed, text.taken) == (1, close + 1, len(ids))
    assert "".join(piece.answer for piece in pieces) == "hen  s"  # special tokens are skipped there, as in any text


def test_stop_strings_count_in_the_answer_alone() -> None:
    name = "byte level, ordinary"
    ids = TOKENIZERS[name].encode(f"{OPEN}the cat END {CLOSE} hen END cat", add_special_tokens=False).ids
    assert streamed(name, ids, stop=("END",)) == ("the cat END", "hen ", True)
    assert streamed(name, ids[: ids.index(TOKENIZERS[name].token_to_id(CLOSE))], stop=("END",))[2] is False


def test_a_thought_is_open_where_the_prompt_ends_with_its_marker() -> None:
    for name, tokenizer in TOKENIZERS.items():
        for text, is_open in ((f"cat{OPEN}\n", True), (f"{OPEN} cat", False), (f"{OPEN}\n\n{CLOSE}\n\n", False)):
            assert opens_thought(tokenizer, tokenizer.encode(text).ids) is is_open, name
        assert has_markers(tokenizer) is ("letters" not in name)
