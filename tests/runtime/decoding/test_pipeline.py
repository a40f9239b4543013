"""The pipeline: its tokens are those that full depth gives one by one, whatever was drafted and whether it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime import Engine, Grammar, Model, RRTEdgeError, Sampling
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.decoding.logits import candidates
from rrt_edge.runtime.decoding.sampler import Sampler
from tests.runtime.drafted import FREE, KINDS, PROMPT, said, same


@pytest.fixture(scope="module")
def three_loops(bundle: Path) -> Iterator[tuple[Model, Model]]:
    with Model.load(bundle) as piped, Model.load(bundle, reproducible=True) as plain:
        yield piped, plain


@pytest.fixture(scope="module")
def two_loops(make_bundle: Callable[..., Path]) -> Iterator[tuple[Model, Model]]:
    folder = make_bundle(loops=2)
    with Model.load(folder) as piped, Model.load(folder, reproducible=True) as plain:
        yield piped, plain


@pytest.fixture
def three(three_loops: tuple[Model, Model]) -> tuple[Model, Model]:
    """A model of three loops that has not drafted yet, and the same that never drafts."""
    three_loops[0]._loaded.drafting = Drafting()
    return three_loops


@pytest.fixture(params=[2, 3])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """As `three`, of two or three loops."""
    piped, plain = request.getfixturevalue("two_loops" if request.param == 2 else "three_loops")
    piped._loaded.drafting = Drafting()
    return piped, plain


class Confident(Drafting):
    """Drafts always; half of the tokens are what was drafted, and the others another, in turn."""

    reads_text = False

    def __init__(self) -> None:
        super().__init__()
        self.verdicts = 0

    def pays(self, last: int, leaves: bool = False) -> bool:
        return True

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        return 0.0

    def verdict(self, token: int, draft: int) -> int:
        self.verdicts += 1
        return draft if self.verdicts % 2 else 2 + (draft + 7) % 200


@pytest.mark.usefixtures("always_draft")
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_full_depths(pair: tuple[Model, Model], kind: str) -> None:
    plain, drafted = pair[1], 0
    for seed in range(2):
        prompt = np.random.default_rng(seed).integers(2, 300, 8).tolist()
        ours, theirs = (model.generate(prompt, KINDS[kind], "full") for model in pair)
        same(list(ours.tokens), list(theirs.tokens))
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert (theirs.stats.drafted, theirs.stats.steps_per_token) == (0, plain.loops)
        assert ours.stats.accepted <= ours.stats.drafted
        drafted += ours.stats.drafted
    assert drafted > 20 if kind != "short" else drafted == 0  # nothing follows that a draft could be for


@pytest.mark.usefixtures("always_draft")
@pytest.mark.parametrize(
    "policy", ["threshold=0", "threshold=0.45", "threshold=0.5", "threshold=0.55", "mean-depth=1.5"]
)
@pytest.mark.parametrize("kind", ["greedy", "sampled", "penalties", "stops", "short"])
def test_tokens_that_leave_early_do_so_alike(pair: tuple[Model, Model], policy: str, kind: str) -> None:
    """The rows that leave go on beside the next ones, and every token and depth is as without."""
    for seed in range(2):
        prompt = np.random.default_rng(seed).integers(2, 300, 8).tolist()
        ours, theirs = (model.generate(prompt, KINDS[kind], policy) for model in pair)
        same(list(ours.tokens), list(theirs.tokens))
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        if policy == "threshold=0" and kind == "greedy":
            assert (ours.stats.drafted, ours.stats.steps_per_token) == (0, 1) and ours.stats.block_rows_per_token > 1


@pytest.mark.usefixtures("always_draft")
def test_a_lesser_depth_is_piped_too(three: tuple[Model, Model]) -> None:
    for kind in ("greedy", "sampled", "penalties"):
        ours, theirs = (model.generate(PROMPT, KINDS[kind], "depth=2") for model in three)
        same(list(ours.tokens), list(theirs.tokens))
        assert ours.stats.drafted > 20 and theirs.stats.drafted == 0


@pytest.mark.usefixtures("always_draft")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammars_are_followed_alike(three: tuple[Model, Model], temperature: float) -> None:
    pytest.importorskip("llguidance")
    for grammar in (
        Grammar.regex(r"[a-f]{3}-[0-9]{2,4}"),
        Grammar.lark('start: animal (" and " animal)*\nanimal: "cat" | "dog"'),
    ):
        sampling = Sampling(max_tokens=60, temperature=temperature, seed=2, grammar=grammar)
        ours, theirs = (model.generate(PROMPT, sampling) for model in three)
        same(list(ours.tokens), list(theirs.tokens))
        assert ours.stats.drafted > 0


def test_a_step_serves_a_token_where_drafts_stand(pair: tuple[Model, Model]) -> None:
    """Rows and steps as they are counted: with all drafts standing one step a token, and a row at each depth."""
    piped, _ = pair

    class Sure(Confident):
        def verdict(self, token: int, draft: int) -> int:
            return draft

    piped._loaded.drafting = Sure()
    stats = piped.generate(PROMPT, KINDS["greedy"]).stats
    loops = piped.loops
    assert stats.drafted == stats.accepted == 49
    assert stats.steps_per_token == round((50 + loops - 1) / 50, 4)
    assert stats.block_rows_per_token == loops and stats.mean_depth == loops


def test_what_follows_rejected_drafts_is_computed_from_whole_tokens(pair: tuple[Model, Model]) -> None:
    """Half of the drafts do not stand, at other depths in turn: each token's log probability is a fresh session's."""
    piped, plain = pair
    piped._loaded.drafting = Confident()
    sampling = Sampling(max_tokens=40, logprobs=0, logit_bias=FREE)
    reply = piped.generate(PROMPT, sampling)
    assert 0 < reply.stats.accepted < reply.stats.drafted
    text = [*PROMPT, *(token.id for token in reply.tokens)]
    logits = np.concatenate(list(plain.session().logits(text, len(reply.tokens) + 1)))
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for at, token in enumerate(reply.tokens):
        assert token.logprob == pytest.approx(float(expected[at, token.id]), abs=1e-4)


def test_a_conversation_goes_on_behind_drafts(three: tuple[Model, Model], tmp_path: Path) -> None:
    """Forks, saved conversations and other policies at every moment of a reply."""
    piped, plain = three
    piped._loaded.drafting = Confident()
    session = piped.session()
    stream = session.stream(PROMPT, Sampling(max_tokens=12, logit_bias=FREE))
    text = list(PROMPT)
    for token in stream:
        piped._loaded.drafting = Drafting()  # of the others, whose tokens are what the model says
        text.append(token.id)
        assert session.ids in (text[:-1], text)
        session.save(tmp_path / "talk.safetensors")
        fork, saved = session.fork(), piped.load_session(tmp_path / "talk.safetensors")
        for copy, policy in ((fork, "depth=1"), (saved, "threshold=0.5")):
            assert copy.ids == session.ids and copy._decoder.length == len(copy.ids)
            theirs = plain.session(lazy_prompt=False).stream([*text, 9], Sampling(max_tokens=5), policy)
            assert [token.id for token in copy.stream([*text, 9], Sampling(max_tokens=5), policy)] == [
                token.id for token in theirs
            ]
    assert session.ids == text[:-1] and session._decoder.length == len(text) - 1


@pytest.mark.usefixtures("always_draft")
def test_policies_take_turns(three: tuple[Model, Model]) -> None:
    piped, plain = three
    session, ids = piped.session(), list(PROMPT)
    for policy in ("full", "threshold=0.5", "full", "depth=2", "lossless", "depth=1", "full"):
        tokens = list(session.stream(ids, Sampling(max_tokens=11), policy))
        fresh = list(plain.stream(ids, Sampling(max_tokens=11), policy))
        assert [token.id for token in tokens] == [token.id for token in fresh]
        ids += [token.id for token in tokens] + [40, 41]


@pytest.mark.usefixtures("always_draft")
def test_stopping_early_keeps_what_was_read(three: tuple[Model, Model]) -> None:
    piped, plain = three
    for count in range(1, 7):
        session = piped.session()
        stream = session.stream(PROMPT, Sampling(max_tokens=50))
        read = [next(stream).id for _ in range(count)]
        stream.close()
        assert session.ids == [*PROMPT, *read][:-1] and session._decoder.length == len(session.ids)
        again = [token.id for token in session.stream([*PROMPT, *read], Sampling(max_tokens=9), "full")]
        assert again == [token.id for token in plain.stream([*PROMPT, *read], Sampling(max_tokens=9), "full")]


@pytest.mark.usefixtures("always_draft")
def test_cancelling_between_two_steps_of_a_token_leaves_whole_tokens(
    three: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped, plain = three
    session = piped.session()
    advance = session._decoder.advance
    steps = iter(range(100))

    def cancelled_later(parts: Any) -> Any:
        session._decoder.cancelled = next(steps) == 7
        return advance(parts)

    monkeypatch.setattr(session._decoder, "advance", cancelled_later)
    read = [token.id for token in session.stream(PROMPT, Sampling(max_tokens=50, logit_bias=FREE))]
    assert session.finish_reason == "cancelled" and 0 < len(read) < 8
    assert session.ids == [*PROMPT, *read][:-1] and session._decoder.length == len(session.ids)
    monkeypatch.setattr(session._decoder, "advance", advance)
    rest = [token.id for token in session.stream([*PROMPT, *read], Sampling(max_tokens=9))]
    assert rest == [token.id for token in plain.stream([*PROMPT, *read], Sampling(max_tokens=9))]


@pytest.mark.usefixtures("always_draft")
def test_a_full_context_shifts_at_the_same_token(bundle: Path) -> None:
    sampling = Sampling(max_tokens=150, logit_bias=FREE)
    replies = []
    for reproducible in (False, True):
        with Model.load(bundle, context=64, reproducible=reproducible) as model:
            session = model.session()
            tokens = []
            for token in session.stream(PROMPT, sampling, context_full="shift"):
                tokens.append(token)
                assert session._decoder.length <= 64
            replies.append([token.id for token in tokens])
    assert replies[0] == replies[1]


@pytest.mark.usefixtures("always_draft")
def test_requests_of_an_engine_draft_beside_each_other(three: tuple[Model, Model]) -> None:
    """More rows than slots, prompts that begin alike, and other policies among them."""
    piped, plain = three
    engine, rng = Engine(piped, prompt_rows=5), np.random.default_rng(0)
    policies, requests = ["full", "depth=2", "lossless", "threshold=0.5"], []
    start = rng.integers(2, 300, 30).tolist()
    for index in range(11):
        prompt = [*start, *rng.integers(2, 300, 1 + index).tolist()] if index % 3 else start[: index + 1]
        sampling = Sampling(max_tokens=9 + index, temperature=0.7 * (index % 2), seed=index)
        requests.append((prompt, sampling, policies[index % 4], engine.submit(prompt, sampling, policies[index % 4])))
        engine.step()
    list(engine.run())
    for prompt, sampling, policy, request in requests:
        theirs = plain.session(lazy_prompt=False).generate(prompt, sampling, policy)
        assert said(request.tokens) == said(theirs.tokens) and request.finish_reason == theirs.finish_reason
        assert (request.generation.stats.drafted > 0) == (policy != "threshold=0.5")


def test_an_engine_serves_a_token_a_step_where_drafts_stand(three: tuple[Model, Model]) -> None:
    piped, _ = three
    piped._loaded.drafting = drafting = Confident()
    drafting.verdict = lambda token, draft: draft  # type: ignore[method-assign]
    engine = Engine(piped)
    requests = [engine.submit([5 + at], Sampling(max_tokens=30, logit_bias=FREE)) for at in range(2)]
    list(engine.run())
    assert engine.steps == 30 + 2  # three loops: the first token takes three steps
    for request in requests:
        stats = request.generation.stats
        assert (stats.drafted, stats.accepted, stats.block_rows_per_token) == (29, 29, 3.0)
        assert stats.steps_per_token == round(32 / 30, 4)


@pytest.mark.usefixtures("always_draft")
def test_the_parts_of_a_request_fail_together_and_others_go_on(
    three: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped, plain = three
    engine = Engine(piped)
    good, bad = (engine.submit(prompt, Sampling(max_tokens=20, logit_bias=FREE)) for prompt in ([9, 10], [11, 12]))
    while len(bad.tokens) < 3:
        engine.step()
    step, cache = piped._loaded.runner.step, bad.held.state.cache

    def fails(binding: Any, parts: Any) -> Any:
        if any(part.cache is cache and part.depth == 2 for part in parts):
            raise RRTEdgeError("worn out")
        return step(binding, parts)

    monkeypatch.setattr(piped._loaded.runner, "step", fails)
    list(engine.run())
    assert bad.finish_reason == "error" and "worn out" in str(bad.error)
    assert said(good.tokens) == said(plain.generate([9, 10], Sampling(max_tokens=20, logit_bias=FREE)).tokens)


@pytest.mark.usefixtures("always_draft")
def test_drafts_that_are_no_numbers_are_not_made(three: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    piped = three[0]
    step = piped._loaded.runner.step

    def damaged(binding: Any, parts: Any) -> Any:
        done = step(binding, parts)
        for part, outcome in zip(parts, done, strict=True):
            if part.depth == 1:
                outcome.logits[:] = np.nan
        return done

    monkeypatch.setattr(piped._loaded.runner, "step", damaged)
    ours, theirs = (model.generate(PROMPT, Sampling(max_tokens=20)) for model in three)
    same(list(ours.tokens), list(theirs.tokens))


def test_each_place_has_a_number_of_its_own_and_tokens_the_distribution() -> None:
    """Chi-square at the 0.1 % level, on a vocabulary of 8. A draft of the same place is likely the same token, and
    changes nothing."""
    rng = np.random.default_rng(3)
    deep = rng.normal(size=8).astype(np.float32)
    shallow = deep + rng.normal(size=8).astype(np.float32) * 0.3
    sampling, count = Sampling(temperature=0.9, seed=5, top_k=7), 20_000
    sampler, undrafted = Sampler(sampling), Sampler(sampling)
    history = [range(place) for place in range(count + 2)]  # of which only the lengths matter here
    drafts, tokens = [], []
    for place in range(count):
        drafts.append(sampler.pick(shallow, history[place]))
        sampler.pick(shallow, history[place + 1])
        tokens.append(sampler.pick(deep, history[place]))
    assert tokens == [undrafted.pick(deep, history[place]) for place in range(count)]
    chosen, probabilities = candidates(deep, sampling)
    expected = np.zeros(8)
    expected[chosen] = probabilities * count
    counted = np.bincount(tokens, minlength=8)
    assert counted[expected == 0].sum() == 0
    kept = expected > 0
    assert ((counted[kept] - expected[kept]) ** 2 / expected[kept]).sum() < 22.46  # 6 degrees of freedom
    assert np.mean(np.array(drafts) == tokens) > 0.8 > 0.6 > np.mean(np.array(drafts[1:]) == tokens[:-1])


@pytest.mark.usefixtures("always_draft")
def test_sampled_replies_have_full_depths_distribution(three: tuple[Model, Model]) -> None:
    """The second token of many replies with and without drafts: two-sample chi-square at the 0.1 % level."""
    piped, plain = three
    counts = np.zeros((2, piped.manifest.architecture.vocabulary))
    for row, model in enumerate((piped, plain)):
        session = model.session()
        for seed in range(400):
            sampling = Sampling(temperature=0.8, top_k=3, seed=1000 * row + seed, max_tokens=2)
            counts[row, list(session.stream([5, 6, 7], sampling))[-1].id] += 1
    seen = counts[:, counts.sum(axis=0) >= 10]
    expected = seen.sum(axis=0) / 2
    chi_square = ((seen - expected) ** 2 / expected).sum()
    degrees = seen.shape[1] - 1
    assert chi_square < degrees + 3.1 * np.sqrt(2 * degrees) + 6
