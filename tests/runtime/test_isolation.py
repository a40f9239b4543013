"""What one request's part of a step raises ends that request alone: the others take the tokens of single runs."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, Engine, ExitPolicy, Grammar, Model, RRTEdgeError, Sampling
from rrt_edge.runtime.decoding.exit_policy import Steering
from rrt_edge.runtime.decoding.request import Request
from rrt_edge.runtime.decoding.sampler import Sampler
from rrt_edge.runtime.decoding.thought import ReplyText
from rrt_edge.runtime.errors import OutOfMemoryError
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.load_options import LoadOptions

PROMPTS = ([20, 30, 40], [50, 60, 70, 80], [90, 100])
BAD_PROMPT = [11, 12, 13]


class Panic(BaseException):
    """As a panic of a library in Rust."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError


ERRORS = [OverflowError(), ValueError("two\nlines"), MemoryError(), StopIteration(), Panic("gone"), Unspeakable()]


def with_a_bad_request(model: Model, place: int, sampling: Sampling, policy: str = "threshold=0.5") -> Request:
    """Run three requests with a bad one before, among or behind them; return the bad one.

    The others' tokens are those of single runs.
    """
    engine = Engine(model)
    good = []
    for index in range(len(PROMPTS) + 1):
        if index == place:
            bad = engine.submit(BAD_PROMPT, sampling, policy)
        if index < len(PROMPTS):
            good.append(engine.submit(PROMPTS[index], Sampling(max_tokens=9, temperature=0.7, seed=index), policy))
    for _ in range(200):
        engine.step()
    assert not engine.running and not engine.waiting
    for index, request in enumerate(good):
        alone = model.generate(PROMPTS[index], Sampling(max_tokens=9, temperature=0.7, seed=index), policy)
        assert [token.id for token in request.tokens] == [token.id for token in alone.tokens]
        assert request.finish_reason == alone.finish_reason
    return bad


def raise_for_the_bad_one(
    monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException, at_call: int
) -> Callable[[], None]:
    """Let a part of the bad request, whose sampling has 77 as its least length, raise at its n-th call."""
    kinds: dict[str, tuple[type, str]] = {
        "sampler": (Sampler, "pick"),
        "grammar": (Sampler, "_changed"),
        "log probabilities": (Sampler, "picked"),
        "detokenizer": (ReplyText, "push"),
        "steering": (Steering, "observe"),
        "policy": (Steering, "policy"),
        "rows": (Request, "parts"),
        "beginning": (Request, "begin"),
    }
    kind, name = kinds[part]
    original, calls, bad = getattr(kind, name), [0], set()
    init = Request.__init__

    def noted(self: Request, number: int, reply: Any, *others: Any) -> None:
        init(self, number, reply, *others)
        if reply.history == BAD_PROMPT:
            bad.update({id(self), id(reply.sampler), id(reply._text), id(reply._steering)})

    def raising(self: Any, *arguments: Any) -> Any:
        if id(self) in bad:
            calls[0] += 1
            if calls[0] >= at_call:
                raise error
        return original(self, *arguments)

    monkeypatch.setattr(Request, "__init__", noted)
    monkeypatch.setattr(kind, name, raising)
    return monkeypatch.undo


def came_from(error: BaseException | None, first: BaseException) -> bool:
    """Whether an error is another's consequence; what a generator raises may be in between."""
    return error is not None and (error.__cause__ is first or came_from(error.__cause__, first))


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize(
    "part",
    ["sampler", "grammar", "log probabilities", "detokenizer", "steering", "policy", "rows", "beginning"],
)
def test_whatever_any_part_of_a_request_raises_ends_that_request_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch, part: str, place: int
) -> None:
    for at, error in enumerate(ERRORS):
        undo = raise_for_the_bad_one(monkeypatch, part, error, at_call=1 if part == "beginning" else 1 + at % 3)
        bad = with_a_bad_request(model, place, Sampling(max_tokens=30))
        assert bad.finish_reason == "error" and isinstance(bad.error, RRTEdgeError)
        assert came_from(bad.error, error) and "\n" not in str(bad.error)
        undo()


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("fields", [{"temperature": 1.0}, {"repetition_penalty": 1.1}, {"logprobs": 2}])
def test_a_number_that_nothing_can_count_with_ends_its_own_request(
    model: Model, place: int, fields: dict[str, Any]
) -> None:
    """As one that got past every check would."""
    sampling = Sampling(max_tokens=30, **fields)
    for name in fields:
        object.__setattr__(sampling, name, 10**400)
    bad = with_a_bad_request(model, place, sampling)
    assert bad.finish_reason in ("error", "length", "stop")


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("error", [OutOfMemoryError("full"), RuntimeError("bad shape"), Panic("gone")])
def test_a_step_that_fails_for_one_part_runs_the_others_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch, place: int, error: BaseException
) -> None:
    """The part's rows cannot run: those of the others, some of which had come already, come once."""
    step = BlockRunner.step

    def failing(self: BlockRunner, binding: Any, parts: Any) -> Any:
        done = step(self, binding, parts)
        if any(part.rows.ndim == 1 and 12 in part.rows.tolist() for part in parts):
            raise error
        return done

    monkeypatch.setattr(BlockRunner, "step", failing)
    engine = Engine(model)
    good = []
    for index in range(len(PROMPTS) + 1):
        if index == place:
            bad = engine.submit(BAD_PROMPT, Sampling(max_tokens=30))
        if index < len(PROMPTS):
            good.append(engine.submit(PROMPTS[index], Sampling(max_tokens=9), "full"))
    while engine.running or engine.waiting:
        engine.step()
    assert bad.finish_reason == "error" and not bad.tokens
    monkeypatch.undo()
    for prompt, request in zip(PROMPTS, good, strict=True):
        alone = model.generate(prompt, Sampling(max_tokens=9), "full")
        assert [token.id for token in request.tokens] == [token.id for token in alone.tokens]


def test_a_step_that_fails_twice_ends_what_it_was_about(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    requests = [engine.submit(prompt, Sampling(max_tokens=4)) for prompt in PROMPTS]

    def failing(self: BlockRunner, binding: Any, parts: Any) -> Any:
        raise RuntimeError("never")

    monkeypatch.setattr(BlockRunner, "step", failing)
    with pytest.raises(RRTEdgeError, match="never"):
        engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 3 and not engine.running
    monkeypatch.undo()
    later = engine.submit(PROMPTS[0], Sampling(max_tokens=4))
    list(engine.run())
    assert [token.id for token in later.tokens] == [
        token.id for token in model.generate(PROMPTS[0], Sampling(max_tokens=4)).tokens
    ]


def test_an_interrupt_is_nobodys_fault_and_reaches_the_caller(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    requests = [engine.submit(prompt, Sampling(max_tokens=4), "full") for prompt in PROMPTS]
    raise_for = requests[1]._reply.sampler
    pick = Sampler.pick

    def interrupted(self: Sampler, *arguments: Any) -> int:
        if self is raise_for:
            raise KeyboardInterrupt
        return pick(self, *arguments)

    monkeypatch.setattr(Sampler, "pick", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run())
    list(engine.run())
    for index in (0, 2):
        alone = model.generate(PROMPTS[index], Sampling(max_tokens=4), "full")
        assert [token.id for token in requests[index].tokens] == [token.id for token in alone.tokens]


class Odd(float):
    def __float__(self) -> float:
        raise TypeError


NO_NUMBERS: list[Any] = [
    10**400, -(10**400), 10**5000, Fraction(10**400), Fraction(1, 3) - 10**30, float("nan"), float("inf"),
    -float("inf"), True, False, "1", b"1", 1j, [1], {}, np.float64("nan"), np.float64("inf"), object(),
]  # fmt: skip
NUMBERS = [
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n", "max_tokens", "min_tokens", "logprobs",
]  # fmt: skip


def refused(make: Callable[[], object]) -> None:
    with pytest.raises(BadInputError) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_every_number_is_bounded_and_finite(value: Any) -> None:
    for name in NUMBERS:
        refused(lambda name=name: Sampling(**{name: value}))
    for bias in ({5: value}, value):
        if bias != {}:
            refused(lambda bias=bias: Sampling(logit_bias=bias))
    refused(lambda: Sampling(stop_ids=(value,)))
    refused(lambda: Sampling(stop=(value,)) if value != "1" else Sampling(stop=("x" * 10**6,)))
    refused(lambda: Sampling(grammar=value))
    for name in ("depth", "threshold", "mean_depth", "ms_per_token"):
        refused(lambda name=name: ExitPolicy(**{name: value}))
    refused(lambda: ExitPolicy(trace=(value,)))
    for name in ("context", "threads", "kv_budget_bytes"):
        refused(lambda name=name: LoadOptions(**{name: value}))


def test_fractions_and_numpys_numbers_become_plain_ones(model: Model) -> None:
    sampling = Sampling(
        temperature=Fraction(1, 3), top_p=np.float16(0.5), seed=np.int64(3), logit_bias={5: Fraction(1)}
    )
    assert [type(value) for value in (sampling.temperature, sampling.top_p, sampling.seed)] == [float, float, int]
    assert type(sampling.logit_bias[5]) is float
    assert len(model.generate(PROMPTS[0], sampling).tokens) > 0


def test_numbers_at_their_bounds_choose_tokens(model: Model) -> None:
    extremes: list[dict[str, Any]] = [
        {"temperature": 1e300}, {"temperature": 5e-324}, {"repetition_penalty": 1e38, "temperature": 1.0},
        {"repetition_penalty": 1e-45, "temperature": 1.0}, {"top_k": 2**31 - 1, "temperature": 1.0},
        {"top_p": 5e-324, "temperature": 1.0}, {"typical_p": 5e-324, "temperature": 1.0},
        {"min_p": 1.0, "temperature": 1.0}, {"seed": 2**64 - 1, "temperature": 1.0},
        {"presence_penalty": -2, "frequency_penalty": 2}, {"max_tokens": 2**31 - 1, "stop_ids": tuple(range(300))},
        {"logit_bias": dict.fromkeys(range(300), 100)}, {"logit_bias": dict.fromkeys(range(300), -100)},
        {"logprobs": 20}, {"min_tokens": 3, "max_tokens": 3},
    ]  # fmt: skip
    for fields in extremes:
        assert model.generate(PROMPTS[0], Sampling(**{"max_tokens": 3, **fields})).tokens, fields
    for budget in ({"ms_per_token": 1e-6}, {"ms_per_token": 1e9}, {"mean_depth": 1.0}, {"threshold": 0.0}):
        assert model.generate(PROMPTS[0], Sampling(max_tokens=5), ExitPolicy(**budget)).tokens, budget


def test_a_policy_deeper_than_the_model_is_refused(model: Model) -> None:
    deeper = model.loops + 1
    for policy in (ExitPolicy(depth=deeper), ExitPolicy(trace=(1, deeper)), ExitPolicy(mean_depth=deeper), 5, b"full"):
        refused(lambda policy=policy: model.stream(PROMPTS[0], exit_policy=policy))
    refused(lambda: model.stream(PROMPTS[0], exit_policy="depth=" + "1" * 10_000))


@pytest.mark.parametrize("prompt", [[10**400], [-1], [1.5], [True], ["5"], [None], "\ud800", "half \udfff"])
def test_prompts_that_hold_no_tokens_are_refused(model: Model, prompt: Any) -> None:
    refused(lambda: model.stream(prompt))
    refused(lambda: model.stream(prompt, raw=True))


def test_options_of_the_engine_are_checked(model: Model) -> None:
    for name in ("kv_budget_bytes", "prompt_rows"):
        for value in (0, 1.5, True, "1", 10**400, float("nan")):
            refused(lambda name=name, value=value: Engine(model, **{name: value}))
    assert Grammar.regex("a").kind == "regex"
