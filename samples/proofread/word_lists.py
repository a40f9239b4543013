"""The word lists of the error model, read from the folder `words`; forms of regular verbs and nouns by rule."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WORDS = Path(__file__).parent / "words"
VOWELS = "aeiou"
# Verbs of several syllables whose last letter doubles (the others of one syllable follow the rule).
DOUBLING = {"admit", "commit", "occur", "refer", "transfer", "control", "equip", "regret", "submit", "prefer", "permit"}


@dataclass(frozen=True)
class Verb:
    """The five forms of a verb: write, writes, wrote, written, writing."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str


def read_sections(name: str) -> dict[str, list[str]]:
    """Lines of a list under their headings: a heading is a line of one word that `HEADINGS` knows."""
    sections: dict[str, list[str]] = defaultdict(list)
    heading = ""
    for line in _lines(name):
        if line in HEADINGS:
            heading = line
        else:
            sections[heading].append(line)
    return dict(sections)


HEADINGS = {
    *("irregular", "regular", "also_nouns", "split", "joined"),
    *("pairs", "adverbs", "uncountable", "comparatives", "superlatives", "names"),
}


@cache
def misspellings() -> dict[str, list[str]]:
    """A word and the ways people misspell it."""
    parts = (line.split(": ") for line in _lines("misspellings.txt"))
    return {right: wrong.split() for right, wrong in parts}


@cache
def homophones() -> dict[str, list[str]]:
    """A word and the words that sound like it."""
    alike: dict[str, list[str]] = defaultdict(list)
    for line in _lines("homophones.txt"):
        right, arrow, wrong = line.partition(" > ")
        if arrow:  # what stands behind the arrow is words, or one phrase ("could of")
            alike[right] += [wrong] if wrong.endswith(" of") else wrong.split()
        else:
            for word in line.split():
                alike[word] += [other for other in line.split() if other != word]
    return dict(alike)


@cache
def verbs() -> dict[str, Verb]:
    """Base -> all forms."""
    sections = read_sections("verbs.txt")
    found = {}
    for line in sections["irregular"]:
        base, past, participle = line.split()
        found[base] = Verb(base, third_person(base), past, participle, gerund(base))
    for base in " ".join(sections["regular"]).split():
        past = regular_past(base)
        found.setdefault(base, Verb(base, third_person(base), past, past, gerund(base)))
    return found


@cache
def verbs_by(form: str) -> dict[str, Verb]:
    """Word -> verb, where the word is that form: `verbs_by("past")["wrote"]`."""
    return {getattr(verb, form): verb for verb in verbs().values()}


@cache
def also_nouns() -> frozenset[str]:
    """Verbs that are as often nouns: one cannot tell which without a subject beside them."""
    return frozenset(" ".join(read_sections("verbs.txt")["also_nouns"]).split())


@cache
def collocations() -> dict[tuple[str, str], list[str]]:
    """(word, its preposition) -> the wrong ones; an empty one leaves it out."""
    found = {}
    for line in _lines("collocations.txt"):
        right, wrong = line.split(" > ")
        word, preposition = right.rsplit(" ", 1)
        found[word, preposition] = ["" if other == "-" else other for other in wrong.split()]
    return found


@cache
def split_words() -> dict[str, str]:
    """A word -> the same split."""
    pairs = (line.split(" ", 1) for line in read_sections("compounds.txt")["split"])
    return {parts[0]: parts[1] for parts in pairs}


@cache
def joined_words() -> frozenset[str]:
    """Words that people write as one, with the space that belongs there."""
    return frozenset(read_sections("compounds.txt")["joined"])


@cache
def confused_forms() -> dict[str, str]:
    """A word -> another form of it that people take."""
    sections = read_sections("forms.txt")
    found: dict[str, str] = {}
    for line in sections["pairs"]:
        one, other = line.split()
        found.setdefault(one, other)
        found.setdefault(other, one)
    for line in sections["adverbs"]:
        adverb, adjective = line.split()
        found.setdefault(adverb, adjective)
    return found


@cache
def word_set(section: str) -> frozenset[str]:
    """One of the plain lists of forms.txt."""
    return frozenset(" ".join(read_sections("forms.txt")[section]).split())


def third_person(base: str) -> str:
    """Also the plural of a noun."""
    if base in ("do", "go") or base.endswith(("s", "sh", "ch", "x", "z")):
        return base + "es"
    if base.endswith("y") and base[-2] not in VOWELS:
        return base[:-1] + "ies"
    return base + "s"


def regular_past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in VOWELS:
        return base[:-1] + "ied"
    return _doubled(base) + "ed"


def gerund(base: str) -> str:
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "oe")) and base != "be":
        return base[:-1] + "ing"
    return _doubled(base) + "ing"


def singular(plural: str) -> str | None:
    """The singular of a noun whose plural is made by rule; None where the word does not look like one."""
    if len(plural) < 4 or not plural.endswith("s") or plural.endswith(("ss", "us", "is", "'s", "ous")):
        return None
    if plural.endswith("ies"):
        return plural[:-3] + "y"
    if plural.endswith(("shes", "ches", "xes", "sses")):
        return plural[:-2]
    return plural[:-1]


def _doubled(base: str) -> str:
    vowels = sum(letter in VOWELS for letter in base)
    ends = len(base) > 2 and base[-1] not in VOWELS + "wxy" and base[-2] in VOWELS and base[-3] not in VOWELS
    short = vowels == 1 or base == "quit"
    irregular = base in ("begin", "forget")
    return base + base[-1] if ends and (short or base in DOUBLING or irregular) else base


def _lines(name: str) -> list[str]:
    text = (WORDS / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
