"""The proofreader as a module: what is sent to the model, what is taken of its replies, what stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import RRTEdgeError
from tests.samples.proofreader import ANOTHER, CORRECTIONS, EMPTY, FIGURES, LOOP, LOST, MARKUP, OTHER, TOGETHER


@pytest.fixture(scope="module")
def proofreader(package: ModuleType, proofreader_bundle: Path) -> Iterator[Any]:
    with package.Proofreader.load(proofreader_bundle) as loaded:
        yield loaded


def joined(separator: str, ends: tuple[str, str] = ("", "")) -> tuple[str, str]:
    """All texts that the model knows as one document, and all corrections."""
    return tuple(ends[0] + separator.join(part) + ends[1] for part in (CORRECTIONS, CORRECTIONS.values()))


def test_the_model_knows_its_corrections_at_every_depth(package, proofreader_bundle):
    for point in (None, "fast", "balanced", "faithful", "depth=1", "full"):
        with package.Proofreader.load(proofreader_bundle, point) as proofreader:
            for text, right in CORRECTIONS.items():
                if text[0].isupper():  # a line without an end is a title, whose first letter stays
                    assert proofreader.correct(text).text == right, point


@pytest.mark.parametrize(
    ("separator", "ends"),
    [
        ("\n\n", ("", "\n")),
        ("\r\n\r\n", ("\ufeff", "\r\n\r\n")),
        ("\n \t\n\n", ("\n\n\t", "  ")),
        ("\r\r", ("", "")),
        ("\n- ", ("- ", "\n")),
        ("\n> > ", ("> > ", "")),
        ("\n\n  12) ", ("  1) ", "")),
    ],
)
def test_what_stands_between_the_paragraphs_stays(proofreader, separator, ends):
    text, right = (
        whole.replace("the end is near", "", 1).replace("The end is near.", "", 1) for whole in joined(separator, ends)
    )
    assert proofreader.correct(text).text == right


def test_line_ends_within_a_paragraph_stay(proofreader):
    text = "She need new hose for the\r\n\tgarden.\n\nWe are gone home ,  and its\nlate.\n"
    assert proofreader.correct("He was a lot older with out  his hat.").text == "He was a lot older without  his hat."
    markdown = proofreader.correct(text, is_markdown=True)
    assert markdown.text == "She needs a new hose for the\r\n\tgarden.\n\nWe are going home,  and it's\nlate.\n"


def test_quotes_and_dashes_come_to_the_model_plain_and_stay(proofreader):
    assert proofreader.correct("They don\u2019t knows.").text == "They don\u2019t know."
    assert (
        proofreader.correct("Tell him about a a long\u2013winding road .").text
        == "Tell him about a long\u2013winding road."
    )
    text = "We are gone home , and its late.\n\nIt\u2019s"
    assert proofreader.correct(text).text == "We are going home, and it\u2019s late.\n\nIt\u2019s"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOOP, "the model's reply had no end within"),
        (EMPTY, "the model gave an empty reply"),
        (OTHER, "the model's reply differs too much from the text"),
        (
            "\u0427\u0435\u043b\u043e\u0432\u0435\u043a \u0438\u0434\u0451\u0442 \u0434\u043e\u043c\u043e\u0439.",
            "it is not in English",
        ),
        ("Der Mann geht mit seinem Hund durch den dunklen Wald.", "it does not look like English"),
    ],
)
def test_what_cannot_be_corrected_stays_and_is_named(proofreader, text, reason):
    text = f"He go to school every day.\n\n{text}\n"
    corrected = proofreader.correct(text)
    assert corrected.text == text.replace("He go ", "He goes ")
    (left,) = corrected.left
    assert text[left.start : left.end] == text.split("\n")[2] and left.reason.startswith(reason)


def test_what_fails_together_is_read_sentence_by_sentence(proofreader):
    corrected = proofreader.correct(TOGETHER)
    assert corrected.text == "They like it. We were here." and not corrected.left


def test_figures_marks_and_other_words_stay_and_the_rest_of_the_reply_counts(proofreader):
    assert proofreader.correct(ANOTHER).text == "The pharmacy closes at noon."
    assert proofreader.correct(LOST).text == "They bring umbrella when it rains."
    assert proofreader.correct(FIGURES).text == "They owe us 40 crowns and he pays."
    assert proofreader.correct(MARKUP, is_markdown=True).text == "You must not star this words in here."


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", " \r\n\t", "```\nHe go to school every day.\n", "x", "---\n"])
@pytest.mark.parametrize("is_markdown", [False, True])
def test_texts_without_prose_stay(proofreader, text, is_markdown):
    if not (text.startswith("```") and not is_markdown):
        corrected = proofreader.correct(text, is_markdown=is_markdown)
        assert corrected.text == text and not corrected.edits and not corrected.left


def test_a_megabyte(proofreader):
    text, right = joined("\n\n")
    fence = "```\n" + "code (x) {y}\n" * 80_000 + "```\n\n"
    whole = proofreader.correct(fence + text, is_markdown=True)
    assert len(fence) > 1_000_000 and whole.text == fence + right


def test_positions_and_depths_add_up(package, proofreader_bundle):
    text, _ = joined("\n\n")
    with package.Proofreader.load(proofreader_bundle, "balanced") as proofreader:
        corrected = proofreader.correct(text)
    assert [text[edit.start : edit.end] for edit in corrected.edits][:3] == ["go", "seen", " the"]
    segments = list(corrected.segments())
    assert "".join(part.text for part in segments if part.kind != "removed") == corrected.text
    assert "".join(part.text for part in segments if part.kind != "inserted") == text
    depths = {part.depth for part in segments if part.text.strip() and part.kind != "removed"}
    assert {1, 2} <= depths and 1 < corrected.depth < 2
    words = [part for part in segments if part.kind == "kept" and part.text == " school"]
    assert words and words[0].depth in (1, 2)


def test_only_what_changed_is_read_again(package, proofreader_bundle):
    text, _ = joined("\n\n")
    with package.Proofreader.load(proofreader_bundle) as proofreader:
        steps: list[None] = []
        first = proofreader.correct(text, is_stopped=lambda: steps.append(None) is not None)
        all_steps = len(steps)
        assert proofreader.correct(text, is_stopped=lambda: True).text == first.text  # nothing runs that could stop
        with pytest.raises(package.Stopped):
            proofreader.correct(f"{text}\n\nSomething new has been added here.", is_stopped=lambda: True)
        steps.clear()
        proofreader.correct(f"He go to town every day.\n\n{text}", is_stopped=lambda: steps.append(None) is not None)
        assert 0 < len(steps) < all_steps


def test_stopping_ends_within_a_step(package, proofreader_bundle):
    steps: list[None] = []

    def is_stopped() -> bool:
        steps.append(None)
        return len(steps) == 3

    with package.Proofreader.load(proofreader_bundle) as proofreader:
        with pytest.raises(package.Stopped):
            proofreader.correct(joined("\n\n")[0], is_stopped=is_stopped)
        assert len(steps) == 3
        assert proofreader.correct("He go to school every day.").text == "He goes to school every day."


def test_pieces_have_three_sentences_at_most_and_end_where_sentences_do(package):
    from proofread import pieces, plain_text

    text = (
        'Mr. J. Smith came at 3 p.m. on Monday. He asked, "Is it so?" We said yes! Then e.g. nothing happened... '
        "The end came. Some "
    ) + "words " * 300
    (prose,) = plain_text.find_prose(text)
    found = [piece.text for piece in pieces.cut(prose)]
    assert found[0] == 'Mr. J. Smith came at 3 p.m. on Monday. He asked, "Is it so?" We said yes!'
    assert found[1].startswith("Then e.g. nothing happened... The end came.")
    assert all(len(piece) <= pieces.LONGEST for piece in found) and " ".join(found) == text.strip()


WORDS = st.sampled_from(["the", "a", "don't", "well-known", ",", ".", " ", "  ", "(", ")", "9", "\u00e9", "x"])


@given(st.lists(WORDS).map("".join), st.lists(WORDS).map("".join))
def test_changes_together_give_the_reply(package, text, reply):
    from proofread.comparing import compare

    text, reply = " ".join(text.split()), " ".join(reply.split())
    for choose in (lambda change: change, lambda change: change.also or change):
        parts, at = [], 0
        for change in map(choose, compare(text, reply)):
            assert at <= change.start <= change.end
            parts += [text[at : change.start], reply[change.first : change.last]]
            at = change.end
        assert "".join([*parts, text[at:]]) == reply


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("A sofa.", [("A", 0.9), (" so", 0.8), (".", 0.5), ("", 0.9)], [0.8 * 0.5]),  # "so" ends where "." comes
        ("The the end", [("The", 0.9), (" end", 0.7), ("", 0.5)], [0.7]),  # a removal: the token that comes instead
        ("No end", [("No", 0.9), (" end", 0.7), (".", 0.6), ("", 0.5)], [0.6 * 0.5]),
        ("He go on", [("He", 0.9), (" go", 0.8), ("es", 0.7), (" on", 0.6), ("", 0.5)], [0.8 * 0.7 * 0.6]),
        ("I is an", [("I", 0.9), (" am", 0.8), (" a", 0.7), ("", 0.5)], [0.8 * 0.7, 0.7 * 0.5]),
        ("Same.", [("Same", 0.2), (".", 0.1)], []),
    ],
)
def test_the_probability_of_a_change_is_that_of_its_tokens_and_the_next(package, text, tokens, expected):
    from proofread.comparing import compare
    from proofread.replies import Reply, Written

    written, at = [], 0
    for piece, probability in tokens:
        written.append(Written(at, at + len(piece), 1, probability))
        at += len(piece)
    answer = "".join(piece for piece, _ in tokens)
    reply = Reply(answer, tuple(written), tuple(compare(text, answer)), None)
    assert [reply.probability(change) for change in reply.changes] == pytest.approx(expected)


def test_a_change_that_the_model_is_not_sure_of_is_not_made(package, proofreader_bundle):
    from proofread.replies import generate

    text = "She go home. We goes too."
    with package.Proofreader.load(proofreader_bundle, sure=0) as proofreader:
        assert proofreader.correct(text).text == CORRECTIONS[text]
        ((_, reply),) = generate(proofreader.model, proofreader.policy, [text], lambda: False)
        first, second = (reply.probability(change) for change in reply.changes)
        assert first != second
        proofreader = package.Proofreader(proofreader.model, sure=(first + second) / 2)
        half = "She goes home. We goes too." if first > second else "She go home. We go too."
        assert proofreader.correct(text).text == half


@pytest.mark.parametrize("sure", [-0.1, 1.5, float("nan")])
def test_a_probability_that_is_none_is_refused(package, proofreader_bundle, sure):
    with pytest.raises(RRTEdgeError, match=f"sure: must be a probability from 0 to 1, not {sure}"):
        package.Proofreader.load(proofreader_bundle, sure=sure)
