"""Errors between words: doubled and missing ones, punctuation, apostrophes, capitals."""

from __future__ import annotations

import random
import re

import grammar_words as classes
import word_lists
from edits import Edit, Word, follows, instead, without

INTRODUCTIONS = re.compile(
    r"^(?:However|Therefore|For example|For instance|In addition|Additionally|Furthermore|Moreover|First|Second|"
    r"Finally|Also|"
    r"Unfortunately|Fortunately|Instead|Today|Yes|No|Well|Now|Then|Next|Meanwhile|Still|In fact|Of course|In short|"
    r"Recently|"
    r"As a result|In other words|On the other hand|At the same time|Similarly|Generally|Typically|Ultimately|Overall|"
    r"Hi \w+)(,)"
)
LISTED = re.compile(r"\b[a-z]+(,) (?:[a-z]+ )?[a-z]+,? (?:and|or) [a-z]")
THAT_FOLLOWS = {
    "say",
    "says",
    "said",
    "know",
    "think",
    "believe",
    "ensure",
    "found",
    "find",
    "show",
    "shows",
    "means",
    "sure",
    "note",
    "see",
}
NO_DOUBLES = {"that", "had", "no", "very", "so", "really", "bye", "there"}
CONTRACTION = re.compile(r"(?i)(?:n't|'s|'re|'ll|'ve|'d|'m)$")
EITHER_WAY = {
    "its",
    "were",
    "well",
    "wed",
    "shed",
    "hell",
    "ill",
    "shell",
    "whose",
}  # contractions that are words without the mark


def doubled(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """The same word twice."""
    return [
        Edit(word.end, word.end, f" {word.low if word.text != 'I' else 'I'}", "doubled")
        for word in words
        if (len(word.text) <= 4 or rng.random() < 0.15) and word.low not in NO_DOUBLES and not word.text[1:].isupper()
    ]


def missing(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """A small word left out where the grammar tells which."""
    edits: list[Edit | None] = []
    for index, word in enumerate(words[:-1]):
        before = words[index - 1].low if follows(words, index) else ""
        after = words[index + 1].low if follows(words, index + 1) else ""
        verb = any(after in word_lists.verbs_by(form) for form in ("gerund", "participle"))
        if (
            (word.low == "to" and after in word_lists.verbs() and before in classes.TO_FOLLOWS)
            or (word.low in ("is", "are", "was", "were") and verb and before)
            or (word.low in ("be", "been") and before in classes.MODALS | classes.HAVE | {"to"})
            or (
                word.low == "as"
                and (before in ("such", "well", "much", "long", "far", "soon") or after in ("well", "soon"))
            )
            or (word.low == "than" and before)
            or (word.low == "of" and before in classes.OF_FOLLOWS)
            or (word.low == "it" and before in ("that", "if", "when", "because", "make", "makes") and after)
            or (word.low == "who" and before in classes.PERSONS)
            or (
                word.low in ("we", "they", "you", "i") and before in ("that", "if", "when", "because", "what") and after
            )
        ):
            edits.append(without(words, index, "missing"))
    return [edit for edit in edits if edit]


def punctuation(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """A mark left out, put in, or another than the right one."""
    last, end = sentence[-1], len(sentence)
    edits = [Edit(end - 1, end, rng.choice(["", "", last + last, " " + last]), "punctuation")]
    if last == "?":
        edits += [Edit(end - 1, end, ".", "punctuation")] * 3
    introduced = INTRODUCTIONS.match(sentence)
    if introduced:
        edits += [Edit(introduced.start(1), introduced.end(1), "", "punctuation")] * 2
    edits += [Edit(match.start(1), match.end(1), "", "punctuation") for match in LISTED.finditer(sentence)]
    for match in re.finditer(r"(?<=[a-z]), (?=[a-z])", sentence):
        at = match.start()
        edits.append(Edit(at, at + 2, rng.choice([",", " , ", ",, ", " ,"]), "punctuation"))
    for index in range(1, len(words)):
        if follows(words, index) and words[index].low == "that" and words[index - 1].low in THAT_FOLLOWS:
            edits.append(Edit(words[index - 1].end, words[index - 1].end, ",", "punctuation"))
    quotes = [match.start() for match in re.finditer('"', sentence)]
    if len(quotes) == 2:
        edits.append(Edit(quotes[1], quotes[1] + 1, "", "punctuation"))
    if sentence.count("(") == sentence.count(")") == 1:
        at = sentence.index(")")
        edits.append(Edit(at, at + 1, "", "punctuation"))
    return edits


def apostrophes(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """The mark left out or misplaced, or put into a plural."""
    edits = []
    for word in words:
        mark = word.text.find("'")
        bare = word.text.replace("'", "")
        if CONTRACTION.search(word.text) and bare.lower() not in EITHER_WAY:
            if word.low.endswith("n't") and rng.random() < 0.3:
                edits.append(
                    Edit(word.start, word.end, word.text[: mark - 1] + "'" + word.text[mark - 1] + "t", "apostrophe")
                )
            else:
                edits.append(Edit(word.start + mark, word.start + mark + 1, "", "apostrophe"))
        elif _plural_noun(word) and not word.text.endswith("ies") and rng.random() < 0.15:
            edits.append(Edit(word.end - 1, word.end - 1, "'", "apostrophe"))
    return edits


def capitals(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """A small letter where a capital belongs, and seldom the reverse."""
    edits = []
    for word in words:
        contracted = word.text[:2] == "I'"
        if (
            word.text == "I"
            or contracted
            or word.text in word_lists.word_set("names")
            or (word.first and word.text[1:].islower())
        ):
            edits += [Edit(word.start, word.start + 1, word.text[0].lower(), "capital")] * 2
        elif word.text == "A" and word.first:
            edits.append(Edit(word.start, word.end, "a", "capital"))
        elif word.low in classes.AUXILIARIES | classes.NOT_NOUNS and word.text.islower() and rng.random() < 0.1:
            edits.append(instead(word, word.text.capitalize(), "capital"))
    return edits


def _plural_noun(word: Word) -> bool:
    plural = word.text.islower() and word_lists.singular(word.text) is not None
    return plural and word.text not in classes.AUXILIARIES | classes.NOT_NOUNS
