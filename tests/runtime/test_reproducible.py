"""`Model.load(reproducible=True)`: a reply depends on its prompt and its options alone, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, Engine, Model, Sampling
from rrt_edge.runtime.decoding.reply import Token

POLICIES = ["full", "threshold=0.5", "depth=1", "threshold=0.3", "depth=2"]
LONGEST = 150  # of prompts: more than a call takes


@pytest.fixture(scope="module")
def four_bits(make_bundle: Callable[..., Path]) -> Path:
    """Three loops, 4 bits: what a row is computed among changes its logits by about 1e-4 there."""
    return make_bundle(bits=4)


@pytest.fixture(scope="module")
def model(four_bits: Path) -> Iterator[Model]:
    with Model.load(four_bits, reproducible=True) as loaded:
        yield loaded


pytestmark = pytest.mark.usefixtures("always_draft")


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, rng.integers(1, LONGEST)).tolist() for _ in range(count)]


def sampling(index: int) -> Sampling:
    return Sampling(max_tokens=12 + 6 * index, temperature=0.7 * (index % 2), seed=index, logprobs=0)


def bits(tokens: list[Token] | tuple[Token, ...]) -> list[tuple[int, int, float | None]]:
    """What a reply's tokens are, and how likely they were to the last bit."""
    return [(token.id, token.depth, token.logprob) for token in tokens]


def together(model: Model, texts: list[list[int]], rule: str = "exact") -> list[list[tuple[int, int, float | None]]]:
    engine = Engine(model, kv_rule=rule)
    requests = [engine.submit(text, sampling(at), POLICIES[at % len(POLICIES)]) for at, text in enumerate(texts)]
    for _ in engine.run():
        pass
    return [bits(request.tokens) for request in requests]


def alone(model: Model, texts: list[list[int]], rule: str = "exact") -> list[list[tuple[int, int, float | None]]]:
    return [
        bits(list(model.session(kv_rule=rule).stream(text, sampling(at), POLICIES[at % len(POLICIES)])))
        for at, text in enumerate(texts)
    ]


@pytest.mark.parametrize("rule", ["exact", "latest", "skip", "last"])
def test_a_request_among_others_gets_the_bits_it_gets_alone(model: Model, rule: str) -> None:
    texts = prompts(12)
    assert together(model, texts, rule) == alone(model, texts, rule)


def test_it_is_needed(four_bits: Path) -> None:
    """Without it the same requests differ in their last bits, so that the tests here can fail."""
    with Model.load(four_bits) as plain:
        texts = prompts(12)
        assert together(plain, texts) != alone(plain, texts)


def test_nothing_is_drafted(model: Model) -> None:
    for text in prompts(3, seed=1):
        stats = model.generate(text, sampling(5), "full").stats
        assert (stats.drafted, stats.steps_per_token, stats.block_rows_per_token) == (0, model.loops, model.loops)


@pytest.mark.parametrize("policy", ["full", "threshold=0.5", "depth=1"])
def test_what_a_conversation_held_before_makes_no_difference(model: Model, policy: str) -> None:
    """Turns that go on from one another, a prompt that goes back, and other policies in between."""
    session, rng = model.session(), np.random.default_rng(2)
    text = rng.integers(2, 300, 140).tolist()
    for turn in range(4):
        ours = list(session.stream(text, sampling(turn), policy))
        fresh = list(model.session().stream(text, sampling(turn), policy))
        assert bits(ours) == bits(fresh)
        list(session.stream(text[:60], sampling(1), "threshold=0.3"))
        text = [*text, *(token.id for token in ours), *rng.integers(2, 300, 9).tolist()]


def test_what_others_have_run_of_a_prompt_makes_no_difference(model: Model) -> None:
    beginning = [*prompts(1, seed=3)[0], *[7] * LONGEST]
    texts = [beginning[: LONGEST + 9 * at] for at in range(6)]
    expected = alone(model, texts)
    engine = Engine(model)
    for at, text in enumerate(texts):
        request = engine.submit(text, sampling(at), POLICIES[at % len(POLICIES)])
        for _ in engine.run():
            pass
        assert bits(request.tokens) == expected[at]


def test_a_long_prompt_is_not_run_again_whole(model: Model, calls: list[int]) -> None:
    session = model.session()
    text = np.random.default_rng(4).integers(2, 300, 280).tolist()
    list(session.stream(text, Sampling(max_tokens=1)))
    calls.clear()
    list(session.stream([*text, 5, 6], Sampling(max_tokens=1)))
    assert calls == [281 - 256, 1]


def test_a_saved_conversation_goes_on_with_the_same_bits(model: Model, tmp_path: Path) -> None:
    session = model.session()
    text = prompts(1, seed=5)[0]
    reply = list(session.stream(text, sampling(1), "threshold=0.5"))
    session.save(tmp_path / "chat.session")
    longer = [*text, *(token.id for token in reply), 9, 8]
    resumed = list(model.load_session(tmp_path / "chat.session").stream(longer, sampling(2), "full"))
    assert bits(resumed) == bits(list(session.stream(longer, sampling(2), "full")))


def test_windows_that_slide_make_no_difference(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from rrt_edge.conversion import convert
    from rrt_edge.exporters import export
    from tests.checkpoints import save_tokenizer
    from tests.families import random_model

    random_model("mistral", sliding_window=24).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    convert(tmp_path / "source", tmp_path / "recursive", loops=3, rank=4)
    export(tmp_path / "recursive", tmp_path / "bundle", bits=4)
    with Model.load(tmp_path / "bundle", reproducible=True) as sliding:
        assert sliding.manifest.architecture.window(1, 0) == 24
        session, text = sliding.session(), [*prompts(1, seed=6)[0], *[9] * 40]
        for turn in range(3):
            ours = list(session.stream(text, sampling(turn)))
            assert bits(ours) == bits(list(sliding.session().stream(text, sampling(turn))))
            text = [*text[:130], 5 + turn]


def test_it_is_for_the_cpu(four_bits: Path) -> None:
    with pytest.raises(BadInputError, match="reproducible"):
        Model.load(four_bits, reproducible=True, device="webgpu")
