"""Sessions as other programs use them: threads, asyncio, cancelling, files, full contexts, budgets, logprobs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rrt_edge.runtime import BadInputError, BundleError, ContextFullError, ExitPolicy, Model, Sampling
from rrt_edge.runtime.decoding.exit_policy import Steering
from rrt_edge.runtime.running.runner import NEVER
from tests.runtime.replies import LONG, PROMPT, ids_of


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["exact", "latest", "skip", "last"])
def test_a_saved_conversation_goes_on_elsewhere(bundle: Path, tmp_path: Path, rule: str, calls: list[int]) -> None:
    path = tmp_path / "talk.safetensors"
    with Model.load(bundle) as model:
        session = model.session(kv_rule=rule)  # type: ignore[arg-type]
        text = PROMPT + [token.id for token in session.stream(PROMPT, Sampling(max_tokens=40), "threshold=0.5")]
        session.save(path)
        expected = session.generate([*text, 9], Sampling(max_tokens=30), "threshold=0.5")
    with Model.load(bundle) as other:
        calls.clear()
        loaded = other.load_session(path)
        assert not calls and loaded.ids == text[: len(loaded.ids)]
        found = loaded.generate([*text, 9], Sampling(max_tokens=30), "threshold=0.5")
        assert calls[0] == 1  # the conversation's tokens did not run again
        assert [(token.id, token.depth) for token in found.tokens] == [
            (token.id, token.depth) for token in expected.tokens
        ]


def test_a_conversation_of_another_bundle_or_a_damaged_one_is_refused(
    model: Model, make_bundle, tmp_path: Path
) -> None:
    path = tmp_path / "talk.safetensors"
    session = model.session()
    session.generate(PROMPT, Sampling(max_tokens=5))
    session.save(path)
    with (
        Model.load(make_bundle(loops=2)) as other,
        pytest.raises(BundleError, match=r"talk\.safetensors: is a conversation with another"),
    ):
        other.load_session(path)
    with pytest.raises(BadInputError, match=r"none\.safetensors: no such file"):
        model.load_session(tmp_path / "none.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInputError, match=r"half\.safetensors: damaged"):
        model.load_session(half)
    save_file(load_file(path), half, {"format": "pt"})
    with pytest.raises(BadInputError, match="is no conversation"):
        model.load_session(half)
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    arrays["key.2.0"] = arrays["key.2.0"][:, :, :-1]
    save_file(arrays, half, metadata)
    with pytest.raises(BadInputError, match=r"damaged.*key\.2\.0"):
        model.load_session(half)
    with pytest.raises(BadInputError, match=r"cannot be written|is a folder"):
        session.save(tmp_path)
    with pytest.raises(BadInputError, match="cannot be written"):
        session.save(tmp_path / "no" / "such" / "talk.safetensors")
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".partial")] == []


@pytest.mark.usefixtures("always_draft")
@pytest.mark.parametrize("policy", ["threshold=0.5", "full"])
def test_a_fork_in_the_middle_of_a_reply_goes_its_own_way(model: Model, policy: str, tmp_path: Path) -> None:
    session = model.session()
    stream = session.stream(PROMPT, Sampling(max_tokens=30), policy)
    begun = PROMPT + [next(stream).id for _ in range(10)]
    fed = session.ids
    assert fed in (begun[:-1], begun)  # all of it where the last token was a draft that stood
    other = session.fork()
    session.save(tmp_path / "talk.safetensors")
    rest = [token.id for token in stream]
    for copy in (other, model.load_session(tmp_path / "talk.safetensors")):
        assert copy.ids == fed
        assert [token.id for token in copy.stream(begun, Sampling(max_tokens=20), "full")] == [
            token.id for token in model.stream(begun, Sampling(max_tokens=20))
        ]
    assert len(rest) == 20 and session.ids == (begun + rest)[:-1]


def test_a_session_has_one_reply_under_way(model: Model) -> None:
    session = model.session()
    first = session.stream(PROMPT, Sampling(max_tokens=30))
    next(first), next(first)
    second = [token.id for token in session.stream([*PROMPT, 9], Sampling(max_tokens=10))]
    assert next(first, None) is None
    assert second == [token.id for token in model.stream([*PROMPT, 9], Sampling(max_tokens=10))]
    del first
    assert session.ids == [*PROMPT, 9, *second][:-1]


def test_rewinding_forgets_the_end(model: Model) -> None:
    session = model.session()
    session.generate(PROMPT, Sampling(max_tokens=10))
    session.rewind(3)
    assert session.ids == PROMPT[:3] and session._decoder.length == 3
    assert (
        session.generate(PROMPT, Sampling(max_tokens=10)).text == model.generate(PROMPT, Sampling(max_tokens=10)).text
    )
    with pytest.raises(BadInputError, match="length 99"):
        session.rewind(99)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", "threshold=0.5"])
def test_a_full_context_shifts_and_the_reply_goes_on_from_the_newer_half(bundle: Path, policy: str) -> None:
    """Each token is what a fresh conversation with the tokens held would say next."""
    with Model.load(bundle, context=64) as model:
        sampling = Sampling(max_tokens=150, logit_bias={1: -100.0})
        session = model.session()
        with pytest.raises(ContextFullError):
            session.stream(list(range(20, 90)), sampling, policy)
        assert len(session.generate(PROMPT, sampling, policy).tokens) == 64 - len(PROMPT)
        stream = session.stream(PROMPT, sampling, policy, context_full="shift")
        history = list(PROMPT)
        for token in stream:
            history.append(token.id)
            assert session._decoder.length <= 64
        assert len(stream.generation.tokens) == 150 and stream.generation.finish_reason == "length"
        assert session.ids == history[-1 - len(session.ids) : -1]
    if policy != "threshold=0.5":
        # a context that has room for all sees what the shifted one still held
        with Model.load(bundle) as large:
            held = session.ids
            said = large.generate(held, Sampling(max_tokens=1, logit_bias={1: -100.0}), "full").tokens[0].id
        assert said == history[-1]


def test_prompts_are_cut_from_the_left_on_request(bundle: Path) -> None:
    with Model.load(bundle, context=64) as model:
        prompt = list(range(20, 120))
        cut = list(model.stream(prompt, Sampling(max_tokens=20), context_full="truncate-left"))
        expected = list(model.stream(prompt[-(64 - 20) :], Sampling(max_tokens=20)))
        assert [token.id for token in cut] == [token.id for token in expected]
        messages = [{"role": "system", "content": "sys"}]
        for at in range(20):
            messages += [{"role": "user", "content": f"The cat {at}"}, {"role": "assistant", "content": "eats"}]
        messages.append({"role": "user", "content": "The dog"})
        ids = model.encode_chat(messages, 40)
        text = model.tokenizer.decode(ids, skip_special_tokens=False)
        assert len(ids) <= 40 and "sys" in text and "dog" in text and "cat 0" not in text and "cat 19" in text
        with pytest.raises(BadInputError, match="context-full 'drop'"):
            model.stream(prompt, context_full="drop")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("target", [1.3, 2.0, 2.6])
def test_a_budget_of_depth_is_met(model: Model, target: float) -> None:
    sampling = Sampling(max_tokens=200, temperature=1.0, seed=1, logit_bias={1: -100.0})
    stats = model.generate(PROMPT, sampling, f"mean-depth={target}").stats
    assert stats.mean_depth == pytest.approx(target, abs=0.15)


def test_a_budget_of_time_steers_by_the_clock() -> None:
    """A machine on which a loop takes 4 ms: 6 ms a token are met between 1 and 2 loops, 1 ms as nearly as can be."""
    gates = np.random.default_rng(0).uniform(size=2000)
    for budget, wanted in ((6.0, 6.0), (1.0, 4.0), (100.0, 8.0)):
        steering = Steering(ExitPolicy(threshold=0.5, ms_per_token=budget))
        steering.observe(2, None)  # the first token's prompt is no budget's
        spent = []
        for index, gate in enumerate(gates):
            depth = 1 if gate >= steering.policy(index).threshold else 2
            spent.append(0.004 * depth)
            steering.observe(depth, spent[-1])
        assert 1000 * np.mean(spent[100:]) == pytest.approx(wanted, rel=0.05)


def test_a_budget_bounds_what_leaves() -> None:
    assert Steering(ExitPolicy(threshold=0.5, mean_depth=1.0)).policy(0).threshold == 0.5
    steering = Steering(ExitPolicy(threshold=0.5, mean_depth=3.0))
    for _ in range(50):
        steering.observe(1, None)
    assert steering.policy(50).threshold == NEVER  # not even a gate that is 1 in float32 leaves


def test_policies_of_budgets_are_checked(model: Model) -> None:
    for text in ("mean-depth=0.5", "mean-depth=4", "ms-per-token=0", "mean-depth=x"):
        with pytest.raises(BadInputError, match="exit policy"):
            model.stream(PROMPT, None, text)


def test_log_probabilities_are_torchs(model: Model, recursive: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(recursive)
    sampling = Sampling(max_tokens=12, temperature=0.8, seed=3, logprobs=4, top_k=3, repetition_penalty=1.3)
    for policy in ("full", "threshold=0.5"):
        generation = model.generate(PROMPT, sampling, policy)
        ids = torch.tensor([PROMPT + [token.id for token in generation.tokens]])
        depths = [one.detach() for one in theirs(ids, output_depths=True).depth_logits]
        for at, token in enumerate(generation.tokens):
            expected = torch.log_softmax(depths[token.depth - 1][0, len(PROMPT) + at - 1], -1)
            assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
            values, indices = expected.topk(4)
            assert [one for one, _ in token.top_logprobs] == indices.tolist()
            np.testing.assert_allclose([value for _, value in token.top_logprobs], values, atol=1e-4)
    assert model.generate(PROMPT, Sampling(max_tokens=1)).tokens[0].logprob is None


def test_choices_are_what_their_seeds_give_and_run_the_prompt_once(model: Model, calls: list[int]) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=5, n=3)
    found = [one.text for one in model.choices(LONG, sampling)]
    assert sum(rows for rows in calls if rows > 1) == len(LONG) - 1
    expected = [model.generate(LONG, Sampling(max_tokens=8, temperature=1.0, seed=5 + at)).text for at in range(3)]
    assert found == expected and len(set(found)) == 3


def test_ends_that_a_request_names(model: Model) -> None:
    free = ids_of(model, PROMPT, max_tokens=30)
    end = free[5]
    stopped = model.generate(PROMPT, Sampling(max_tokens=30, stop_ids=(end,)), "threshold=0.5")
    assert stopped.finish_reason == "stop" and stopped.tokens[-1].id == end
    assert len(stopped.tokens) == free.index(end) + 1
    longer = model.generate(PROMPT, Sampling(max_tokens=30, min_tokens=20, stop_ids=(end,)), "threshold=0.5")
    assert len(longer.tokens) >= 20 and end not in [token.id for token in longer.tokens[:19]]
    with pytest.raises(BadInputError, match="stop-ids: token id 300"):
        model.stream(PROMPT, Sampling(stop_ids=(300,)))
    with pytest.raises(BadInputError, match="logit-bias: token id 999"):
        model.stream(PROMPT, Sampling(logit_bias={999: 1.0}))


@pytest.mark.slow
def test_what_happens_is_logged(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "rrt_edge"), Model.load(bundle, context=64) as model:
        list(model.stream(PROMPT, Sampling(max_tokens=80, logit_bias={1: -100.0}), context_full="shift"))
    text = caplog.text
    for said in ("loaded on cpu in", "prompt of 5 tokens, 0 of them held", "oldest 32 are dropped"):
        assert said in text
