"""The proofreader's texts: the error model, the sets made with it, the set that people's texts make up, the scores."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "proofread"
PEOPLE = SAMPLE / "heldout" / "people.jsonl"
MODULES = ("corpus_text", "edits", "error_model", "pairs", "scoring", "word_lists")
SENTENCES = [
    "However, the new website doesn't show which of these three services people use most often.",
    "We have written to the agency because its manager wants an answer before Monday.",
    "They said that their customers' questions were easier than ours, and we believe them.",
    "Do you know whether everyone in the United States has access to the internet?",
    "It is important to plan a meeting with the team in order to discuss apples, pears and plums.",
    "In addition, I received a lot of useful information about the history of your city.",
    "People who work at night often feel tired, although they sleep well without any noise.",
    "She has been to Paris twice, but he will never forget that he lost two tickets there.",
]


@pytest.fixture(scope="module")
def proofread(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return programs(*MODULES)


def records() -> list[dict[str, object]]:
    return [json.loads(line) for line in PEOPLE.read_text("utf-8").splitlines()]


def spoilt(proofread: SimpleNamespace, seed: int, count: int) -> list:
    model, rng = proofread.error_model.ErrorModel(), random.Random(seed)
    return [model.spoil(rng.sample(SENTENCES, rng.choice([1, 2, 3])), rng) for _ in range(count)]


def test_the_same_seed_makes_the_same_errors(proofread):
    assert spoilt(proofread, 1, 50) == spoilt(proofread, 1, 50)
    assert spoilt(proofread, 1, 50) != spoilt(proofread, 2, 50)


def test_undoing_the_errors_gives_the_right_text_back(proofread):
    for pair in spoilt(proofread, 3, 400):
        assert proofread.edits.apply(pair.correct, pair.edits) == pair.text
        assert proofread.edits.undo(pair.text, pair.correct, pair.edits) == pair.correct
        assert bool(pair.edits) == (pair.text != pair.correct)


def test_a_quarter_of_the_texts_has_no_error(proofread):
    clean = sum(not pair.edits for pair in spoilt(proofread, 4, 1000))
    assert 210 <= clean <= 290  # three standard deviations around 250


def test_a_sentence_has_at_most_five_errors(proofread):
    model, rng = proofread.error_model.ErrorModel(), random.Random(5)
    counts = Counter(len(model.spoil([rng.choice(SENTENCES)], rng).edits) for _ in range(600))
    assert set(counts) == {0, 1, 2, 3, 4, 5}


def test_each_kind_of_error_occurs_and_is_undone_alone(proofread):
    model, rng = proofread.error_model.ErrorModel(), random.Random(6)
    for kind in model.kinds:
        edits = [(one, edit) for one in SENTENCES for edit in model.candidates(one, kind, rng)]
        assert edits, f"no sentence has a place for {kind}"
        for sentence, edit in edits:
            wrong = proofread.edits.apply(sentence, [edit])
            assert edit.kind == kind
            assert proofread.edits.undo(wrong, sentence, [edit]) == sentence


@pytest.mark.parametrize(
    ("kind", "sentence", "wrong"),
    [
        ("article", "He has an answer.", "He has a answer."),
        ("article", "She bought a house.", "She bought house."),
        ("agreement", "The tests were long.", "The tests was long."),
        ("agreement", "She knows two cities.", "She knows two city."),
        ("agreement", "He knows it.", "He know it."),
        ("tense", "They have written it.", "They have wrote it."),
        ("tense", "He didn't go there.", "He didn't went there."),
        ("preposition", "It depends on you.", "It depends of you."),
        ("homophone", "We could have won.", "We could of won."),
        ("missing", "He wants to leave now.", "He wants leave now."),
        ("doubled", "He is at home.", "He is at at home."),
        ("apostrophe", "He doesn't know.", "He doesnt know."),
        ("capital", "See you on Monday.", "See you on monday."),
        ("joined", "I like it a lot.", "I like it alot."),
        ("split", "He left without me.", "He left with out me."),
        ("form", "They drive slowly.", "They drive slow."),
        ("pronoun", "They have left.", "Them have left."),
        ("punctuation", "However, he came.", "However he came."),
        ("spelling", "I believe you.", "I beleive you."),
        ("slip", "It came from you.", "It came form you."),
    ],
)
def test_the_model_makes_errors_that_people_make(proofread, kind, sentence, wrong):
    model, made = proofread.error_model.ErrorModel(), set()
    for seed in range(200):
        edits = model.candidates(sentence, kind, random.Random(seed))
        made |= {proofread.edits.apply(sentence, [edit]) for edit in edits}
    assert wrong in made


def test_a_slip_never_gives_a_known_word_by_chance(proofread):
    known = frozenset({"cart", "care", "core"})
    model, rng = proofread.error_model.ErrorModel(known), random.Random(7)
    made = {edit.wrong for _ in range(2000) for edit in model.candidates("Carts care.", "slip", rng)}
    assert made
    assert not made & known


def test_the_word_lists_are_wide_and_hold_no_right_word_as_wrong(proofread):
    lists = proofread.word_lists
    assert len(lists.misspellings()) >= 300
    assert len(lists.homophones()) >= 80
    assert all(right not in wrongs for right, wrongs in lists.misspellings().items())
    assert all(right not in wrongs for right, wrongs in lists.homophones().items())


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("write", ("writes", "wrote", "written", "writing")),
        ("carry", ("carries", "carried", "carried", "carrying")),
        ("stop", ("stops", "stopped", "stopped", "stopping")),
        ("reach", ("reaches", "reached", "reached", "reaching")),
        ("enjoy", ("enjoys", "enjoyed", "enjoyed", "enjoying")),
        ("agree", ("agrees", "agreed", "agreed", "agreeing")),
        ("begin", ("begins", "began", "begun", "beginning")),
        ("visit", ("visits", "visited", "visited", "visiting")),
        ("use", ("uses", "used", "used", "using")),
    ],
)
def test_forms_of_verbs(proofread, base, forms):
    verb = proofread.word_lists.verbs()[base]
    assert (verb.third, verb.past, verb.participle, verb.gerund) == forms


def test_unfit_sentences_are_no_targets(proofread):
    fit = proofread.corpus_text.is_fit
    assert all(fit(sentence) for sentence in SENTENCES)
    assert not fit("Improve TasksOrganize content around your customers' tasks.")
    assert not fit("Slide 46: So first, I'll pass it off to Amy.")
    assert not fit("Be specific The feedback should refer to behaviors.")
    assert not fit("We recieve a letter every day.")
    assert not fit("We had the pleasure of working with the U.S.")


def test_near_duplicates_of_training_text_are_dropped(proofread):
    training = ["The quick brown fox jumps over the lazy dog on a sunny day."]
    apart = ["A quick brown fox jumps over the lazy dog on a sunny day.", "Nobody has ever seen a fox like that one."]
    assert proofread.corpus_text.without_near_duplicates(apart, training) == apart[1:]
    assert proofread.corpus_text.without_near_duplicates([apart[1], apart[1]], []) == apart[1:]


def test_sets_are_apart_and_follow_from_the_seed(proofread, monkeypatch):
    monkeypatch.setattr(proofread.corpus_text, "HELD_OUT_LINES", (3, 12))
    monkeypatch.setattr(proofread.corpus_text, "TRAINING_LINES", (13, None))
    monkeypatch.setattr(proofread.pairs, "HELD_OUT", 4)
    names = ["Anna", "Ben", "Carla", "David", "Emma", "Finn"]
    habits = ("paints wooden boats and horses", "mends old clocks in the cellar", "draws maps of distant islands")
    lines = [f"{name} {habit} quietly." for name in names for habit in habits]
    random.Random(0).shuffle(lines)
    sets = proofread.pairs.divide(lines)
    assert sets.training == lines[12:]
    assert len(sets.held_out) <= 4
    assert set(sets.held_out) | set(sets.others) <= set(lines[2:12])
    assert not set(sets.held_out) & set(sets.others)
    made = proofread.pairs.make_sets(sets)
    assert made == proofread.pairs.make_sets(sets)
    assert [pair.correct for pair in made["heldout.jsonl"]] == sets.held_out


def test_a_pair_is_one_turn_and_its_reply(proofread):
    pair = proofread.error_model.Pair("He go.", "He goes.", ())
    assert proofread.pairs.chat(pair.text, pair.correct) == {
        "messages": [{"role": "user", "content": "He go."}, {"role": "assistant", "content": "He goes."}]
    }


def test_peoples_texts_are_well_formed():
    people = records()
    assert len(people) >= 200
    assert sum(not record["kinds"] for record in people) == 50
    for record in people:
        assert set(record) == {"text", "correct", "kinds", "register"}
        assert bool(record["kinds"]) == (record["text"] != record["correct"])
        assert record["correct"][0].isupper() or not record["correct"][0].isalpha()
        assert record["correct"][-1] in ".!?"
        assert "  " not in record["text"] + record["correct"]


def test_no_two_of_peoples_texts_are_alike():
    texts = [record["correct"] for record in records()]
    assert len(set(texts)) == len(texts)
    openings = Counter(" ".join(text.split()[:4]) for text in texts)
    assert max(openings.values()) == 1
    seen: dict[tuple[str, ...], str] = {}
    for text in texts:
        words = re.findall(r"[a-z']+", text.lower())
        for run in zip(*(words[start:] for start in range(6)), strict=False):
            assert seen.setdefault(run, text) == text, run


def test_the_card_counts_the_kinds_of_error():
    card = (PEOPLE.parent / "README.md").read_text("utf-8")
    counts = Counter(kind for record in records() for kind in record["kinds"])
    told = re.findall(r"^\| ([a-z]+)[^|]*\| (\d+) \| [^|]*[\"a-z]", card, re.MULTILINE)
    assert {kind: int(count) for kind, count in told} == counts
    registers = Counter((record["register"], bool(record["kinds"])) for record in records())
    for register in ("mail", "chat", "ticket", "note"):
        assert f"| {register} | {registers[register, True]} | {registers[register, False]} |" in card


def test_edits_are_spans_of_tokens(proofread):
    edits = proofread.scoring.token_edits("He go to to the school yesterday", "He went to school yesterday.")
    assert edits == {(1, 2, ("went",)), (3, 5, ()), (7, 7, (".",))}
    assert proofread.scoring.token_edits("So , yes.", "So, yes.") == {(-1, -1, ("spaces",))}
    assert proofread.scoring.token_edits("Same.", "Same.") == set()


def test_scores_against_a_case_worked_out_by_hand(proofread):
    texts = ["He go home.", "I seen a apple.", "All is well.", "Fine here."]
    correct = ["He goes home.", "I saw an apple.", "All is well.", "Fine here."]
    answers = ["He goes home.", "I saw a apple.", "All is well.", "Fine hear."]
    scores = proofread.scoring.score(texts, correct, answers)
    # Edits wanted: go, seen, a. Proposed: go, seen, and "hear", which is wrong.
    assert (scores.precision, scores.recall) == pytest.approx((2 / 3, 2 / 3))
    assert scores.f05 == pytest.approx(2 / 3)
    assert (scores.exact, scores.clean, scores.clean_kept, scores.faulty_exact) == (0.5, 2, 0.5, 0.5)


def test_f_half_weighs_precision_twice(proofread):
    assert proofread.scoring.f_beta(1.0, 0.5) == pytest.approx(1.25 * 0.5 / 0.75)
    assert proofread.scoring.f_beta(0.0, 0.0) == 0.0


def test_the_interval_is_wilsons(proofread):
    # 81 of 263: Newcombe (1998), Statistics in Medicine 17, table I, method 3 gives 0.2553 to 0.3662.
    low, high = proofread.scoring.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert proofread.scoring.wilson(0, 20)[0] == 0.0
