"""What is told of each token beside it: its gates at the loops it ran, and what the first loop would have said."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrt_edge.runtime import Engine, ExitPolicy, Model, Sampling, Token
from rrt_edge.runtime.decoding.sampler import Sampler

PROMPT = [5, 9, 14, 3, 20]
SAMPLING = Sampling(max_tokens=12, first_loop=True, logit_bias={7: -2.0})
POLICIES = {"full": ExitPolicy(), "by the gate": ExitPolicy(threshold=0.88), "in turn": ExitPolicy(trace=(1, 3, 2))}


def alone(model: Model, ids: list[int], depth: int) -> Token:
    """The token that one depth alone says behind a text: the gate there is its gate."""
    sampling = Sampling(max_tokens=1, logit_bias={7: -2.0})
    return model.session().generate(ids, sampling, ExitPolicy(depth=depth)).tokens[0]


def check(model: Model, tokens: tuple[Token, ...]) -> int:
    """Each token's gates and its first loop's word are those of the depths alone; how often the first differs."""
    ids, differing = list(PROMPT), 0
    for token in tokens:
        assert len(token.gates) == min(token.depth, model.loops - 1)
        for depth, gate in enumerate(token.gates, 1):
            assert gate == pytest.approx(alone(model, ids, depth).gate, abs=2e-5)
        assert token.gate == (1 if token.depth == model.loops else token.gates[-1])
        assert token.first_loop == alone(model, ids, 1).id
        differing += token.first_loop != token.id
        ids.append(token.id)
    return differing


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("drafts", [False, True])
def test_a_session_tells_of_gates_and_the_first_loop(
    bundle: Path, policy: ExitPolicy, drafts: bool, request: pytest.FixtureRequest
) -> None:
    if drafts:
        request.getfixturevalue("always_draft")
    with Model.load(bundle, device="cpu", reproducible=not drafts) as model:
        assert check(model, model.session().generate(PROMPT, SAMPLING, policy).tokens)


@pytest.mark.parametrize("drafts", [False, True])
def test_an_engine_tells_of_them_too(bundle: Path, drafts: bool, request: pytest.FixtureRequest) -> None:
    if drafts:
        request.getfixturevalue("always_draft")
    with Model.load(bundle, device="cpu", reproducible=not drafts) as model:
        engine = Engine(model)
        requests = [engine.submit(PROMPT, SAMPLING, policy) for policy in POLICIES.values()]
        for _ in engine.run():
            pass
        assert all(check(model, request.generation.tokens) for request in requests)


def test_nothing_is_told_of_the_first_loop_where_nobody_asks(bundle: Path) -> None:
    with Model.load(bundle, device="cpu") as model:
        tokens = model.session().generate(PROMPT, Sampling(max_tokens=3), "full").tokens
        assert [token.first_loop for token in tokens] == [None] * 3 and all(len(token.gates) == 2 for token in tokens)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_first_loop_draws_with_the_random_number_of_the_place(bundle: Path, policy: ExitPolicy) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=3, first_loop=True)
    with Model.load(bundle, device="cpu") as model:
        tokens, ids = model.session().generate(PROMPT, sampling, policy).tokens, list(PROMPT)
        sampler, session = Sampler(sampling, len(PROMPT)), model.session()
        for token in tokens:
            (logits,) = session.logits(ids, 1, "depth=1")
            assert token.first_loop == sampler.pick(logits[-1], ids)
            ids.append(token.id)


def test_the_loop_graph_tells_of_the_same(bundle: Path) -> None:
    """Rules under which a token that left early leaves something else run there."""
    with Model.load(bundle, device="cpu") as model:
        exact, other = (
            model.session(kv_rule=rule).generate(PROMPT, SAMPLING, "full").tokens for rule in ("exact", "latest")
        )
        for ours, theirs in zip(exact, other, strict=True):
            assert (ours.id, ours.first_loop) == (theirs.id, theirs.first_loop)
            assert ours.gates == pytest.approx(theirs.gates, abs=2e-5)
