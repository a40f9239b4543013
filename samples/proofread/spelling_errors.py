"""Errors inside a word: slips of a finger, misspellings, words that sound alike, words joined and split."""

from __future__ import annotations

import random
import re

import word_lists
from edits import Edit, Word, follows, instead

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Slips that give another word, which a spell checker does not see.
SLIPPED_WORDS = {
    "from": ["form", "fro"], "form": ["from"], "you": ["yo", "your"], "your": ["you", "yor"],
    "the": ["teh", "th", "he"],
    "and": ["adn", "an", "nad"], "that": ["taht", "tha"], "this": ["tihs", "thi"], "with": ["wiht", "wit"],
    "for": ["fro", "fo"],
    "have": ["ahve", "hav"], "has": ["as", "hsa"], "are": ["ar", "aer"], "not": ["nto", "now"], "but": ["bu", "btu"],
    "can": ["cna", "ca"], "will": ["wil", "wll"], "they": ["tehy", "the"], "their": ["thier", "ther"],
    "them": ["tem", "then"],
    "just": ["jsut", "jus"], "about": ["abuot", "abot"], "people": ["poeple", "peopel"], "when": ["wehn", "wen"],
    "our": ["out", "oru"], "out": ["our", "ot"], "also": ["aslo", "als"], "what": ["waht", "wha"],
    "make": ["mkae", "mak"],
    "use": ["ues", "us"], "work": ["wrok", "wok"], "which": ["whcih", "whch"], "there": ["tehre", "ther"],
    "were": ["wer", "ere"],
    "need": ["nede", "ned"], "like": ["liek", "lik"], "time": ["tiem", "tim"], "who": ["woh", "wo"],
    "how": ["hwo", "ow"],
    "some": ["soem", "som"], "more": ["moer", "mor"], "been": ["ben", "bene"], "would": ["woudl", "wold"],
    "quite": ["qiute"],
    "because": ["becuase", "beacuse"], "other": ["ohter", "othr"], "public": ["pulbic", "publc"],
    "data": ["dtaa", "dat"],
}  # fmt: skip
# Words in nearly every sentence: how often they may be taken for a word that sounds alike.
SELDOM = {
    "to": 0.3,
    "of": 0.25,
    "for": 0.15,
    "by": 0.15,
    "in": 0.1,
    "our": 0.5,
    "one": 0.3,
    "no": 0.4,
    "would": 0.3,
    "not": 0.3,
}
# Where people misspell a word they do not know by heart: pattern and what they write.
SPELLING_RULES = [
    (r"ie", "ei"), (r"(?<=[^aeiou])ei", "ie"), (r"ance$", "ence"), (r"ence$", "ance"), (r"ant$", "ent"),
    (r"ent$", "ant"),
    (r"able$", "ible"), (r"ible$", "able"), (r"ary$", "ery"), (r"ery$", "ary"), (r"ely$", "ly"), (r"ement$", "ment"),
    (r"ful$", "full"), (r"ally$", "aly"), (r"ully$", "uly"), (r"ies$", "ys"), (r"ied$", "yed"), (r"tion$", "sion"),
    (r"tion(?=al|s)", "sion"), (r"([bcdfglmnprst])\1", r"\1"), (r"(?<=[aeiou])([lmnprst])(?=[aeiou])", r"\1\1"),
    (r"ph", "f"), (r"(?<=.)wh", "w"), (r"(?<=[^aeiou])our", "or"), (r"ous$", "us"), (r"gue$", "g"), (r"que$", "k"),
    (r"sc(?=[ei])", "s"), (r"cqu", "qu"), (r"xc(?=e)", "x"), (r"(?<=.)ea(?=[^aeiou])", "ee"),
    (r"er(?=[^aeiou]+.)", "ar"),
    (r"(?<=[^aeiou])i(?=[^aeiou]i)", "e"), (r"(?<=[^aeiou])e(?=[^aeiou]i)", "i"), (r"(?<=[^aeiou])a(?=[^aeiou]i)", "e"),
    (r"or$", "er"), (r"er$", "or"), (r"ck", "k"), (r"(?<=.)dge", "ge"), (r"(?<=.)tch", "ch"), (r"ing$", "eing"),
    (r"(?<=[aiou])te(?=d$|s$)", "t"), (r"ure$", "er"), (r"ial$", "al"), (r"uous$", "ous"), (r"ity$", "aty"),
    (r"le$", "el"),
]  # fmt: skip


def slips(words: list[Word], rng: random.Random, known: frozenset[str]) -> list[Edit]:
    """One finger wrong: a neighbour's key, a letter left out, doubled, swapped or put in."""
    edits = [instead(word, rng.choice(SLIPPED_WORDS[word.low]), "slip") for word in words if word.low in SLIPPED_WORDS]
    for word in words:
        if len(word.text) >= 4 and _ordinary(word):
            wrong = _slip(word.text, rng)
            if wrong != word.text and wrong.lower() not in known:
                edits.append(Edit(word.start, word.end, wrong, "slip"))
    return edits


def spellings(words: list[Word], rng: random.Random, known: frozenset[str]) -> list[Edit]:
    """Misspellings from the list, more often than those by rule."""
    listed, by_rule = [], []
    for word in words:
        if word.low in word_lists.misspellings():
            listed.append(instead(word, rng.choice(word_lists.misspellings()[word.low]), "spelling"))
        elif len(word.text) >= 6 and _ordinary(word):
            wrong = _misspell(word.low, rng)
            if wrong and wrong not in known:
                by_rule.append(instead(word, wrong, "spelling"))
    if listed and by_rule:
        return listed if rng.random() < 0.6 else by_rule
    return listed or by_rule


def sound_alikes(words: list[Word], rng: random.Random, known: frozenset[str]) -> list[Edit]:
    """A word that sounds like the right one; "of" for "have" behind a modal."""
    alike = word_lists.homophones()
    edits = {
        word.low: instead(word, rng.choice(alike[word.low]), "homophone")
        for word in words
        if word.low in alike and _ordinary(word) and rng.random() < SELDOM.get(word.low, 1.0)
    }
    for index, word in enumerate(words):
        if (
            word.low == "have"
            and follows(words, index)
            and words[index - 1].low in ("could", "should", "would", "might")
        ):
            edits["have"] = Edit(word.start, word.end, "of", "homophone")
    return list(edits.values())  # one for each different word, so that "to" and "for" do not crowd out the rest


def joins(words: list[Word], rng: random.Random, known: frozenset[str]) -> list[Edit]:
    """A space left out: between words that people take for one, or by a slip of the thumb."""
    usual, by_slip = [], []
    for index in range(1, len(words)):
        if follows(words, index):
            before, word = words[index - 1], words[index]
            edit = Edit(before.end, word.start, "", "joined")
            if f"{before.low} {word.low}" in word_lists.joined_words():
                usual.append(edit)
            elif min(len(before.text), len(word.text)) <= 3 and before.low + word.low not in known:
                by_slip.append(edit)
    return usual or by_slip


def splits(words: list[Word], rng: random.Random, known: frozenset[str]) -> list[Edit]:
    """A word in two."""
    apart = word_lists.split_words()
    return [instead(word, apart[word.low], "split") for word in words if word.low in apart]


def _ordinary(word: Word) -> bool:
    """Not a name or an abbreviation: nobody could tell how those are spelt."""
    return word.text.islower() or word.text == "I" or (word.first and word.text[1:].islower()) or word.text == "A"


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word))  # the first letter is seldom wrong
    letter, kind = word[at], rng.random()
    if kind < 0.25:
        return word[:at] + word[at + 1 :]
    if kind < 0.45:
        return word[:at] + letter + word[at:]
    if kind < 0.75 and at + 1 < len(word):
        return word[:at] + word[at + 1] + letter + word[at + 2 :]
    key = _neighbour(letter.lower(), rng)
    return word[:at] + key + word[at + (kind < 0.92) :]


def _neighbour(letter: str, rng: random.Random) -> str:
    for row, keys in enumerate(KEYBOARD):
        at = keys.find(letter)
        if at >= 0:
            beside = keys[max(at - 1, 0) : at] + keys[at + 1 : at + 2]
            other = KEYBOARD[row - 1 if row else 1]
            return rng.choice(beside + other[at : at + 1])
    return letter


def _misspell(word: str, rng: random.Random) -> str | None:
    places = [
        (match, wrong) for pattern, wrong in SPELLING_RULES for match in re.finditer(pattern, word) if match.start() > 0
    ]
    if not places:
        return None
    match, wrong = rng.choice(places)
    return word[: match.start()] + match.expand(wrong) + word[match.end() :]
