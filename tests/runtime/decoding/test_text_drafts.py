"""Drafts from the text: several run together, and the tokens are those that full depth gives one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime import Engine, Generation, Grammar, Model, Sampling
from rrt_edge.runtime.decoding.drafting import NEVER, PASSED_OVER, TIMED_AGAIN, Drafting, ReplyTimes
from rrt_edge.runtime.decoding.lookup import Guess, Lookup
from rrt_edge.runtime.decoding.pipeline import MOST_TOGETHER
from tests.runtime.drafted import FREE, KINDS, PROMPT, said, same

LOOPS = (1, 2, 3)


@pytest.fixture(scope="module")
def models(make_bundle: Callable[..., Path], bundle: Path) -> Iterator[Callable[[int], tuple[Model, Model]]]:
    """By loops, a model that drafts, and the same that never does."""
    opened: dict[int, tuple[Model, Model]] = {}

    def pair(loops: int) -> tuple[Model, Model]:
        if loops not in opened:
            folder = bundle if loops == 3 else make_bundle(loops=loops)
            opened[loops] = Model.load(folder), Model.load(folder, reproducible=True)
        return opened[loops]

    yield pair
    for model in (each for both in opened.values() for each in both):
        model.close()


class Foreseen(Lookup):
    """Knows the reply, and is wrong about some of it."""

    def __init__(self, text: Sequence[int], wrong: int) -> None:
        super().__init__()
        self._foreseen, self._wrong, self._length = list(text), wrong, 0

    def follow(self, history: Sequence[int]) -> None:
        self._length = len(history)

    def guesses(self, behind: Sequence[int], most: int, least: float = 0.0) -> list[Guess]:
        first = self._length + len(behind)
        return [
            Guess(token ^ (self._wrong > 0 and place % self._wrong == 0), 0.9)
            for place, token in enumerate(self._foreseen[first : first + most], first)
        ]


class Copying(Drafting):
    """All drafts from the text are made that can be, of a lesser depth all or none; it says how many a pass takes."""

    def __init__(self, text: Sequence[int], wrong: int = 0, most: int = MOST_TOGETHER, piped: bool = False) -> None:
        super().__init__()
        self.text, self._wrong, self._most, self._piped = text, wrong, most, piped

    def lookup(self) -> Lookup:
        return Foreseen(self.text, self._wrong)

    def together(self, chances: Sequence[float], last: int, seconds: float, others: int = 0, sequences: int = 1) -> int:
        return min(len(chances), self._most)

    def pays(self, last: int, leaves: bool = False) -> bool:
        return self._piped

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        return 0.0 if self._piped else NEVER

    def cost(self, rows: int, sequences: int = 1) -> float:
        return 0.0


def both(
    pair: tuple[Model, Model], prompt: list[int], sampling: Sampling, policy: str = "full", **options: Any
) -> tuple[Generation, Generation]:
    """A reply with drafts from the text and without."""
    piped, plain = pair
    theirs = plain.session(lazy_prompt=False).generate(prompt, sampling, policy)
    piped._loaded.drafting = Copying([*prompt, *(token.id for token in theirs.tokens)], **options)
    return piped.generate(prompt, sampling, policy), theirs


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_full_depths(models: Any, loops: int, kind: str, piped: bool) -> None:
    """Whether all drafts stand or some, many run together or few, beside drafts of a lesser depth or alone."""
    for wrong, most in ((0, MOST_TOGETHER), (3, 3), (5, MOST_TOGETHER), (4, 1), (4, 0)):
        prompt = np.random.default_rng(wrong).integers(2, 300, 8).tolist()
        ours, theirs = both(models(loops), prompt, KINDS[kind], wrong=wrong, most=most, piped=piped)
        same(list(ours.tokens), list(theirs.tokens))
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        stats = ours.stats
        assert stats.text_accepted <= stats.text_drafted <= stats.drafted and stats.text_accepted <= stats.accepted
        assert stats.text_accepted > 0 or len(ours.tokens) < 4 or (most == 0 and (loops == 1 or not piped))
        if wrong == 0:
            assert stats.text_accepted == stats.text_drafted


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("policy", ["depth=1", "depth=2"])
def test_so_are_those_of_a_lesser_depth(models: Any, policy: str, piped: bool) -> None:
    for kind in ("greedy", "sampled", "penalties", "stops"):
        ours, theirs = both(models(3), PROMPT, KINDS[kind], policy, wrong=4, piped=piped)
        same(list(ours.tokens), list(theirs.tokens))
        assert ours.stats.text_accepted > 0


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("policy", ["threshold=0", "threshold=0.5", "threshold=0.55", "mean-depth=1.5"])
@pytest.mark.parametrize("loops", [2, 3])
def test_tokens_that_leave_early_do_so_alike(models: Any, loops: int, policy: str, piped: bool) -> None:
    """In a pipeline drafts from the text take the place of a lesser depth's, one by one; else several run depth 1
    together, and a token that goes deeper ends them."""
    for kind in ("greedy", "sampled") if piped else KINDS:
        for wrong, most in ((4, MOST_TOGETHER),) if piped else ((0, MOST_TOGETHER), (4, MOST_TOGETHER), (3, 2)):
            ours, theirs = both(models(loops), PROMPT, KINDS[kind], policy, wrong=wrong, most=most, piped=piped)
            same(list(ours.tokens), list(theirs.tokens))
            assert [token.gates for token in ours.tokens] == [
                pytest.approx(token.gates, abs=1e-5) for token in theirs.tokens
            ]
            stats, leave = ours.stats, sum(token.depth == 1 for token in theirs.tokens)
            assert stats.text_accepted <= stats.text_drafted and (piped or stats.text_accepted <= leave)
            if not piped and leave > 20:
                assert stats.text_accepted > 0 and stats.steps_per_token < theirs.stats.steps_per_token


@pytest.mark.parametrize("loops", [2, 3])
def test_where_all_leave_a_step_brings_as_many_tokens_as_run_together(models: Any, loops: int) -> None:
    ours, _ = both(models(loops), PROMPT, KINDS["greedy"], "threshold=0")
    stats = ours.stats  # 50 tokens: one is timed alone, six times eight run together, one is left
    assert stats.steps_per_token == 8 / 50 and stats.block_rows_per_token == stats.mean_depth == 1
    assert stats.text_drafted == stats.text_accepted == 6 * 7


class Foreseeing(Drafting):
    """Drafts from a text that is right, as many as the real rule says for steps of given times."""

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__()
        self._text = text

    def lookup(self) -> Lookup:
        return Foreseen(self._text, wrong=0)

    def pays(self, last: int, leaves: bool = False) -> bool:
        return False

    def stepped_together(self, rows: int, seconds: float, sequences: int = 1) -> None:
        super().stepped_together(rows, PAIRS[rows], sequences)


def test_fewer_run_together_where_tokens_went_deeper_of_late(models: Any) -> None:
    """Behind a token that goes deeper none counts, however right the text is."""
    piped, plain = models(2)
    sampling, drafted = Sampling(max_tokens=100, temperature=1.2, seed=1, logit_bias=FREE), []
    gates = [token.gates[0] for token in plain.generate(PROMPT, sampling).tokens]
    for share in (1.0, 0.3):
        policy = f"threshold={np.quantile(gates, 1 - share):.6f}"
        theirs = plain.session(lazy_prompt=False).generate(PROMPT, sampling, policy)
        piped._loaded.drafting = Foreseeing([*PROMPT, *(token.id for token in theirs.tokens)])
        alone = piped.generate(PROMPT, sampling, policy)
        engine = Engine(piped)
        request = engine.submit(PROMPT, sampling, policy)
        list(engine.run())
        for ours in (alone, request.generation):
            same(list(ours.tokens), list(theirs.tokens))
            drafted.append(ours.stats.text_drafted)
    assert sum(token.depth == 1 for token in theirs.tokens) > 5
    assert min(drafted[:2]) > 60 and max(drafted[2:]) < 20, drafted


def test_what_the_first_loop_says_is_told_of_tokens_that_ran_together(models: Any) -> None:
    sampling = Sampling(max_tokens=50, logit_bias=FREE, first_loop=True)
    ours, theirs = both(models(2), PROMPT, sampling, "threshold=0.5", wrong=4)
    assert [token.first_loop for token in ours.tokens] == [token.first_loop for token in theirs.tokens]


@pytest.mark.parametrize("loops", LOOPS)
def test_a_pass_through_all_loops_brings_as_many_tokens_as_run_together(models: Any, loops: int) -> None:
    """Rows and steps as they are counted: the first token is timed alone, the last stands where nothing may follow."""
    ours, _ = both(models(loops), PROMPT, KINDS["greedy"])
    stats, passes = ours.stats, 1 + 6 + 1  # 50 tokens, of which six times eight run together
    assert stats.steps_per_token == loops * passes / 50 and stats.block_rows_per_token == loops
    assert stats.drafted == stats.accepted == stats.text_drafted == stats.text_accepted == 6 * 7
    assert stats.mean_depth == loops


@pytest.mark.parametrize("loops", [2, 3])
def test_rows_on_their_way_wait_for_those_from_the_text(models: Any, loops: int) -> None:
    """The pipeline is not emptied first: the second token's rows run together with the drafts that come then."""
    ours, _ = both(models(loops), PROMPT, KINDS["greedy"], piped=True)
    stats = ours.stats
    assert stats.accepted == stats.drafted and stats.text_drafted > 35
    assert stats.steps_per_token < loops * 9 / 50


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammars_are_followed_alike(models: Any, temperature: float) -> None:
    pytest.importorskip("llguidance")
    grammar = Grammar.lark('start: animal (" and " animal)*\nanimal: "cat" | "dog"')
    sampling = Sampling(max_tokens=60, temperature=temperature, seed=2, grammar=grammar)
    for wrong in (0, 3):
        ours, theirs = both(models(3), PROMPT, sampling, wrong=wrong)
        same(list(ours.tokens), list(theirs.tokens))
        assert ours.stats.text_accepted > 0


def test_a_conversation_goes_on_between_tokens_that_ran_together(models: Any, tmp_path: Path) -> None:
    """Forks, saved conversations and readers that stop, at every token."""
    piped, plain = models(3)
    sampling = Sampling(max_tokens=20, logit_bias=FREE)
    reply = [token.id for token in plain.generate(PROMPT, sampling).tokens]
    for count in range(1, 20):
        piped._loaded.drafting = Copying([*PROMPT, *reply], wrong=7)
        session = piped.session()
        stream = session.stream(PROMPT, sampling)
        text = [*PROMPT, *(next(stream).id for _ in range(count))]
        assert session.ids in (text[:-1], text)
        session.save(tmp_path / "talk.safetensors")
        copies = [session.fork(), piped.load_session(tmp_path / "talk.safetensors"), session]
        stream.close()
        assert session.ids == text[:-1] and session._decoder.length == len(session.ids)
        theirs = plain.session(lazy_prompt=False).generate([*text, 9], Sampling(max_tokens=5), "threshold=0.5")
        piped._loaded.drafting = Drafting()
        for copy in copies:
            assert copy._decoder.length == len(copy.ids)
            assert said(copy.generate([*text, 9], Sampling(max_tokens=5), "threshold=0.5").tokens) == said(
                theirs.tokens
            )


def test_a_full_context_shifts_at_the_same_token(bundle: Path) -> None:
    sampling = Sampling(max_tokens=150, logit_bias=FREE)
    replies: list[list[int]] = []
    for reproducible in (True, False):
        with Model.load(bundle, context=64, reproducible=reproducible) as model:
            if replies:
                model._loaded.drafting = Copying([*PROMPT, *replies[0]], wrong=11)
            session = model.session()
            replies.append([])
            for token in session.stream(PROMPT, sampling, context_full="shift"):
                replies[-1].append(token.id)
                assert session._decoder.length <= 64
            assert reproducible or session.stats.text_accepted > 80
    assert replies[0] == replies[1]


@pytest.mark.parametrize("loops", LOOPS)
def test_requests_of_an_engine_take_several_tokens_from_a_step(
    models: Any, loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others that wait for their loops, leave early or read their prompts."""
    piped, plain = models(loops)
    rng = np.random.default_rng(0)
    asked = [
        (
            rng.integers(2, 300, 3 + 4 * at).tolist(),
            Sampling(max_tokens=9 + 3 * at, temperature=0.7 * (at % 2), seed=at),
            ("full", "depth=1", "threshold=0.5")[at % 3],
        )
        for at in range(9)
    ]
    theirs = [plain.session(lazy_prompt=False).generate(*each) for each in asked]
    replies = ([token.id for token in reply.tokens] for reply in theirs)
    foreseen = iter([*each[0], *reply] for each, reply in zip(asked, replies, strict=True))
    drafting = Copying([], wrong=6, piped=True)
    make = piped._loaded.pipeline

    def pipeline(*arguments: Any, **options: Any) -> Any:
        drafting.text = next(foreseen)  # requests begin in order
        return make(*arguments, **options)

    piped._loaded.drafting = drafting
    monkeypatch.setattr(piped._loaded, "pipeline", pipeline)
    engine = Engine(piped, prompt_rows=5)
    requests = [engine.submit(*each) for each in asked]
    came = list(engine.run())
    for request, reply in zip(requests, theirs, strict=True):
        assert said(request.tokens) == said(reply.tokens) and request.finish_reason == reply.finish_reason
        assert [token for other, token in came if other is request] == request.tokens
    assert sum(request.generation.stats.text_accepted for request in requests) > 30
    if loops > 1:  # a model of one loop has nowhere to leave
        assert sum(each.generation.stats.text_accepted for each in requests[2::3]) > 5


def test_a_reply_that_copies_is_copied_by_itself(models: Any) -> None:
    """Nothing is made up but the times: a greedy reply that goes round, behind a prompt that says it already."""
    piped, plain = models(2)
    sampling = Sampling(max_tokens=60, logit_bias=FREE)
    first = [token.id for token in plain.generate(PROMPT, sampling).tokens]
    prompt = [*PROMPT, *first, *PROMPT]
    theirs = plain.generate(prompt, Sampling(max_tokens=200, logit_bias=FREE))

    class Timed(Drafting):
        def pays(self, last: int, leaves: bool = False) -> bool:
            return False

        def stepped_together(self, rows: int, seconds: float, sequences: int = 1) -> None:
            super().stepped_together(rows, 1e-9 * (1 + 0.2 * rows), sequences)

    piped._loaded.drafting = Timed()
    ours = piped.generate(prompt, Sampling(max_tokens=200, logit_bias=FREE))
    same(list(ours.tokens), list(theirs.tokens))
    repeats = sum(a.id == b.id for a, b in zip(theirs.tokens[:-20], theirs.tokens[20:], strict=True))
    assert ours.stats.text_drafted > 0 and ours.stats.drafted == ours.stats.text_drafted, repeats


def drafting_of(steps: dict[int, float], sequences: int = 1) -> Drafting:
    """Milliseconds by rows that run together."""
    drafting = Drafting()
    for rows, milliseconds in steps.items():
        drafting.stepped_together(rows, milliseconds / 1000, sequences)
    return drafting


PAIRS = {1: 10.0, 2: 12.0, 3: 18.0, 4: 20.0, 5: 26.0, 6: 28.0, 7: 35.0, 8: 36.0}


def test_as_many_run_together_as_bring_tokens_soonest() -> None:
    drafting = drafting_of(PAIRS)
    assert [drafting.together([chance] * 7, 2, 0.020) for chance in (0.0, 0.2, 0.5, 0.9, 1.0)] == [0, 0, 1, 3, 7]
    assert drafting.together([0.9, 0.1, 0.9, 0.9], 2, 0.020) == 1
    assert drafting.together([1.0], 2, 0.020) == 1 and drafting.together([], 2, 0.020) == 0
    assert drafting.together([0.8] * 7, 2, 0.013) == 0  # where the pipeline is as fast
    assert drafting.together([1.0] * 7, 1, 0.010) == 7
    assert drafting_of({rows: 10.0 * rows for rows in PAIRS}).together([1.0] * 7, 2, 0.020) == 0


def test_what_was_not_measured_follows_from_what_was() -> None:
    assert drafting_of({1: 10.0}).together([1.0] * 7, 2, 0.020) == 5  # six take three times one, and eight four times
    assert Drafting().together([1.0] * 7, 2, 0.020) == 0  # nothing was
    drafting = Drafting()
    drafting.stepped(1, 0.010)
    assert drafting.together([1.0] * 7, 2, 0.020) == 5


def test_beside_others_a_row_more_must_pay() -> None:
    """Eight rows cost four times one: a ninth costs as much as it saves."""
    drafting = Drafting()
    for rows, milliseconds in PAIRS.items():
        drafting.stepped(rows, milliseconds / 1000, sequences=8)
    assert drafting.together([0.6] * 7, 2, 2 * 0.036 / 8, others=7, sequences=8) == 0
    for rows, milliseconds in PAIRS.items():
        drafting.stepped(rows, milliseconds / 1000, sequences=2)
    assert drafting.together([0.95] * 7, 2, 2 * 0.012 / 2, others=1, sequences=2) > 0


def test_times_of_a_busy_moment_are_forgotten() -> None:
    drafting = drafting_of({1: 10.0, 2: 90.0, 8: 400.0})
    assert [drafting.together([1.0] * 7, 2, 0.020) for _ in range(PASSED_OVER)] == [0] * PASSED_OVER
    drafting.stepped(1, 0.010)
    assert drafting.together([1.0] * 7, 2, 0.020) == 5


def test_what_a_token_takes_without_is_timed_again() -> None:
    times = ReplyTimes()
    assert times.seconds is None
    times.add(1.0)
    times.token(together=False)
    assert times.seconds is None and not times.counts  # the first finds the pipeline empty
    for _ in range(2):
        times.add(0.5)
        times.add(0.5)
        times.token(together=False)
    assert times.seconds == 1.0 and times.counts
    for _ in range(TIMED_AGAIN):
        assert times.seconds == 1.0
        times.token(together=True)
    assert times.seconds is None and not times.counts
    times.add(9.0)
    times.token(together=False)
    assert times.seconds is None  # behind others
    times.add(1.0)
    times.token(together=False)
    assert times.seconds == 1.0
    times.alone(1.0)
    assert times.seconds == 1.0
