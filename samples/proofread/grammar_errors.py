"""Errors of grammar: agreement, tense, articles, prepositions, forms of words, pronouns."""

from __future__ import annotations

import random
import re

import grammar_words as classes
import word_lists
from edits import Edit, Word, follows, instead, without


def agreement(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """A verb or a noun in the wrong number."""
    third, base = word_lists.verbs_by("third"), word_lists.verbs_by("base")
    edits = []
    for index, word in enumerate(words):
        before = words[index - 1].low if follows(words, index) else ""
        earlier = words[index - 2].low if before and follows(words, index - 1) else ""
        after = words[index + 1].low if index + 1 < len(words) and follows(words, index + 1) else ""
        wrong = None
        if word.low in classes.SWAPPED_VERBS:
            wrong = classes.SWAPPED_VERBS[word.low]
        elif (
            word.low == "have"
            and (before in classes.PLURAL_SUBJECTS or _is_plural(before))
            and earlier not in classes.AUXILIARIES
        ):
            wrong = "has"
        elif word.low in third and before and third[word.low].base != "do":
            noun = before not in classes.NOT_NOUNS | classes.AUXILIARIES and not before.endswith(
                ("s", "ly", "ing", "ed")
            )
            clear = third[word.low].base not in word_lists.also_nouns()
            if before in classes.SINGULAR_SUBJECTS or (noun and clear):
                wrong = third[word.low].base
        elif word.low in base and before and word.low != "do":
            clear = word.low not in word_lists.also_nouns()
            subject = before in classes.PLURAL_SUBJECTS and earlier not in classes.AUXILIARIES | classes.CAUSES
            infinitive = before in classes.MODALS or (before == "to" and clear)
            if subject or (clear and _is_plural(before)) or (infinitive and rng.random() < 0.15):
                wrong = base[word.low].third
        elif word.low in ("these", "those") and _is_plural(after):
            wrong = {"these": "this", "those": "that"}[word.low]
        elif (
            word.low == "this"
            and after
            and after not in classes.AUXILIARIES | classes.NOT_NOUNS
            and not after.endswith("s")
        ):
            wrong = "these"
        elif word.low == "many" and _is_plural(after):
            wrong = "much"
        elif _is_plural(word.low) and (
            before in classes.SEVERAL or (before == "the" and earlier == "of" and _one_of(words, index))
        ):
            wrong = word_lists.singular(word.low)
        if wrong:
            edits.append(instead(word, wrong, "agreement"))
    return edits


def tense(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """The wrong form of a verb behind an auxiliary, an irregular verb made by rule, an auxiliary left out."""
    edits = []
    told_of_past = re.search(classes.PAST_TIME, sentence)
    for index, word in enumerate(words):
        before = _auxiliary(words, index)
        wrongs: list[str] = []
        participle, past = word_lists.verbs_by("participle").get(word.low), word_lists.verbs_by("past").get(word.low)
        base, gerund = word_lists.verbs_by("base").get(word.low), word_lists.verbs_by("gerund").get(word.low)
        if word.low in ("have", "has") and index + 1 < len(words) and words[index + 1].low == "been":
            left_out = without(words, index, "tense") if not word.first else None
            edits += [left_out] if left_out else []
        elif participle and before in classes.BE | classes.HAVE:
            wrongs = [participle.base, participle.past, participle.base]
        elif gerund and before in classes.BE:
            wrongs = [gerund.base]
        elif base and (
            before in classes.MODALS | classes.DID or (before == "to" and word.low not in word_lists.also_nouns())
        ):
            wrongs = [base.past, base.participle]
        elif (
            past
            and follows(words, index)
            and before not in classes.AUXILIARIES
            and past.base not in ("mean", "leave", "find")
        ):
            irregular = past.past != word_lists.regular_past(past.base)
            subject = words[index - 1].low in classes.SINGULAR_SUBJECTS | classes.PLURAL_SUBJECTS
            if irregular and subject:
                wrongs = [past.participle, word_lists.regular_past(past.base)]
            elif subject and told_of_past:
                wrongs = [past.base]
        wrongs = [wrong for wrong in wrongs if wrong != word.low]
        if wrongs:
            edits.append(instead(word, rng.choice(wrongs), "tense"))
    return edits


def articles(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """A for an, an for a, or an article left out."""
    edits: list[Edit | None] = []
    for index, word in enumerate(words[:-1]):
        following = words[index + 1]
        if word.low in ("a", "an") and follows(words, index + 1) and word.text != "A" * (len(word.text) > 1):
            if word.low == "an" or rng.random() < 0.25:
                edits.append(instead(word, "a" if word.low == "an" else "an", "article"))
            if not word.first or rng.random() < 0.3:
                edits.append(without(words, index, "article"))
        elif word.low == "the" and following.text.islower():
            after = words[index + 2].low if index + 2 < len(words) else ""
            if following.low in classes.KNOWN_BY_THE or (after == "of" and not _is_plural(following.low)):
                edits.append(without(words, index, "article"))
    return [edit for edit in edits if edit]


def prepositions(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """Another preposition than the word before or the phrase behind takes."""
    edits: list[Edit | None] = []
    for index, word in enumerate(words):
        wrongs: list[str] = []
        if follows(words, index):
            wrongs = word_lists.collocations().get((words[index - 1].low, word.low), [])
        if not wrongs and index + 1 < len(words):
            after = words[index + 1].low
            phrase = f"{after} {words[index + 2].low}" if index + 2 < len(words) else after
            wrongs = classes.LEADING.get((word.low, after)) or classes.LEADING.get((word.low, phrase)) or []
            if word.low == "on" and after in classes.DAYS:
                wrongs = ["in", "at"]
            elif word.low == "in" and words[index + 1].text.istitle() and after in classes.MONTHS:
                wrongs = ["at", "on"]
        if not wrongs and word.low == "in" and re.match(r" (?:19|20)\d\d\b", sentence[word.end :]):
            wrongs = ["at", "on"]
        if wrongs:
            wrong = rng.choice(wrongs)
            edits.append(instead(word, wrong, "preposition") if wrong else without(words, index, "preposition"))
    return [edit for edit in edits if edit]


def forms(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """An adjective for an adverb, a noun for an adjective, a doubled comparison, an infinitive for a gerund."""
    edits = []
    adjectives = word_lists.confused_forms()
    negated = False
    for index, word in enumerate(words):
        before = words[index - 1].low if follows(words, index) else ""
        after = words[index + 1].low if index + 1 < len(words) and follows(words, index + 1) else ""
        gerund = word_lists.verbs_by("gerund").get(word.low)
        wrong = None
        if gerund and (before in classes.BEFORE_GERUND or (before == "to" and words[index - 2].low == "forward")):
            wrong = gerund.base if rng.random() < 0.7 else f"to {gerund.base}"
        elif (word.low, after) in (
            ("used", "to"),
            ("supposed", "to"),
        ) and before in classes.BE | classes.PLURAL_SUBJECTS:
            wrong = word.low[:-1]
        elif word.low in adjectives and (word.low.endswith("ly") or before in classes.BE | classes.NOT_NOUNS):
            wrong = adjectives[word.low]
        elif word.low in word_lists.word_set("uncountable") and before not in word_lists.verbs():
            wrong = word_lists.third_person(word.low) if rng.random() < 0.5 else None
        elif word.low in word_lists.word_set("comparatives") and before != "more":
            wrong = f"more {word.low}"
        elif word.low in word_lists.word_set("superlatives") and before not in ("at", "most"):
            wrong = f"most {word.low}"
        elif word.low == "any" and negated:
            wrong = "no"
        elif word.low == "well" and before in word_lists.verbs() and after not in ("as", "to"):
            wrong = "good"
        elif word.low in ("said", "say") and after == "that":
            wrong = {"said": "told", "say": "tell"}[word.low]
        if wrong:
            edits.append(instead(word, wrong, "form"))
        negated = word.low.endswith("n't") or word.low == "not" or (negated and before != "")
    return edits


def pronouns(words: list[Word], rng: random.Random, sentence: str) -> list[Edit]:
    """Them for they, which for who, me for I."""
    edits = []
    for index, word in enumerate(words):
        before = words[index - 1].low if follows(words, index) else ""
        after = words[index + 1].low if index + 1 < len(words) and follows(words, index + 1) else ""
        wrong = None
        if word.low == "who" and before in classes.PERSONS:
            wrong = rng.choice(["which", "what"])
        elif word.low in ("they", "we") and after in classes.AUXILIARIES:
            wrong = {"they": "them", "we": "us"}[word.low]
        elif word.text == "I" and before == "and":
            wrong = "me"
        elif word.low == "themselves":
            wrong = "theirselves"
        elif word.low == "those" and _is_plural(after):
            wrong = "them"
        elif word.low == "their" and after and before:
            wrong = "they"
        elif word.low in ("me", "us", "him") and before in ("to", "for", "with", "between"):
            wrong = {"me": "I", "us": "we", "him": "he"}[word.low]
        elif (
            word.low == "that" and after in classes.AUXILIARIES and _is_plural(before) and before not in classes.PERSONS
        ):
            wrong = "who"
        if wrong:
            edits.append(instead(word, wrong, "pronoun"))
    return edits


def _is_plural(word: str) -> bool:
    return word_lists.singular(word) is not None and word not in classes.NOT_NOUNS | classes.AUXILIARIES


def _one_of(words: list[Word], index: int) -> bool:
    return index >= 3 and words[index - 3].low == "one"


def _auxiliary(words: list[Word], index: int) -> str:
    """The word before, past "not" and adverbs; empty where there is none."""
    at = index
    while follows(words, at):
        at -= 1
        if words[at].low not in classes.BETWEEN:
            return words[at].low
    return ""
