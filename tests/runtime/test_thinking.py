"""Models that think before they answer: split in every way of running, budgets, grammars, what templates see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from rrt_edge.runtime import BadInputError, Engine, Generation, Grammar, Model, Sampling
from tests.thinker import ANSWER, OPENING, PARTS, THOUGHT, changed, make_tokenizer

CHAT = [{"role": "user", "content": "The cat"}]
WITHOUT = {"enable_thinking": False}
POLICIES = ["full", "depth=1"]


@pytest.fixture(scope="module")
def thinking(thinker: Path) -> Iterator[Model]:
    """The markers are ordinary tokens, as Qwen3 has them, and the model writes both."""
    with Model.load(thinker) as model:
        yield model


@pytest.fixture(scope="module")
def opened(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The markers are special tokens, and the template writes the first."""
    folder = tmp_path_factory.mktemp("opened") / "bundle"
    with Model.load(changed(thinker, folder, make_tokenizer(special=True), OPENING)) as model:
        yield model


@pytest.fixture(scope="module")
def spelt(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The markers take two tokens each; that the model thinks says its template."""
    folder = tmp_path_factory.mktemp("spelt") / "bundle"
    with Model.load(changed(thinker, folder, make_tokenizer(PARTS))) as model:
        yield model


def reply(model: Model, sampling: Sampling | None = None, policy: str = "full", **variables: object) -> Generation:
    stream = model.chat(CHAT, sampling, policy, chat_template_kwargs=variables)
    for _ in stream:
        pass
    generation = stream.generation
    assert (stream.text, stream.thought) == (generation.text, generation.thought)
    return generation


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["thinking", "opened", "spelt"])
def test_a_thought_is_told_from_the_answer(request: pytest.FixtureRequest, kind: str, policy: str) -> None:
    generation = reply(request.getfixturevalue(kind), policy=policy)
    assert (generation.thought, generation.text, generation.finish_reason) == (THOUGHT, ANSWER, "stop")
    assert "".join(token.text for token in generation.tokens) == ANSWER
    thoughts = [token.thought is not None for token in generation.tokens]
    first, behind = thoughts.index(True), len(thoughts) - thoughts[::-1].index(True)
    assert all(thoughts[first:behind]) and first == (1 if kind == "spelt" else 0)
    assert not any(token.text for token in generation.tokens[:behind])


def test_raw_prompts_and_models_without_markers_are_not_split(thinking: Model, model: Model) -> None:
    rendered, ids = thinking.template.render(CHAT), thinking.encode_chat(CHAT)
    raw = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    for prompt in (rendered, list(ids)):
        generation = thinking.generate(prompt, Sampling(think_tokens=0), raw=True)
        assert (generation.text, generation.thought) == (raw, "")
        assert all(token.thought is None for token in generation.tokens)
    assert thinking.generate(ids).thought == THOUGHT
    assert model._loaded.thinking is None
    stream = model.chat(CHAT, Sampling(max_tokens=20, think_tokens=0))
    assert all(token.thought is None for token in stream) and stream.generation.stats.generated_tokens == 20


@pytest.mark.parametrize(("policy", "engine"), [*((policy, False) for policy in POLICIES), ("full", True)])
@pytest.mark.parametrize(
    ("kind", "budget", "seen"),
    [("thinking", 0, ""), ("thinking", 3, "Hm, a"), ("thinking", 9, THOUGHT), ("opened", 0, ""), ("opened", 2, "Hm, a"),
     ("spelt", 3, "Hm, a cat"), ("opened", 1000, THOUGHT)],
)  # fmt: skip
def test_a_budget_ends_the_thought_and_the_answer_follows(
    request: pytest.FixtureRequest, always_draft: None, kind: str, budget: int, seen: str, policy: str, engine: bool
) -> None:
    model, sampling = request.getfixturevalue(kind), Sampling(think_tokens=budget)
    if engine:
        runner = Engine(model)
        runner.submit([5, 6, 7])  # beside it
        asked = runner.submit(model.encode_chat(CHAT), sampling, policy)
        assert any(request is asked for request, _ in runner.run())
        list(runner.run())
        generation = asked.generation
    else:
        generation = reply(model, sampling, policy)
    assert (generation.thought, generation.text, generation.finish_reason) == (seen, ANSWER, "stop")
    assert generation.tokens[-1].thought is None and generation.stats.generated_tokens == len(generation.tokens)
    if policy == "full":
        assert generation.stats.accepted > 0
    if seen != THOUGHT:  # the tokens that end it are in the history as if the model had written them
        written = model.tokenizer.decode([token.id for token in generation.tokens], skip_special_tokens=False)
        assert f"{seen}\n</think>\n\n{ANSWER}" in written


def test_drawn_tokens_follow_a_budget_too(thinking: Model, always_draft: None) -> None:
    sampling = Sampling(think_tokens=4, temperature=1.0, top_k=20, seed=1, min_tokens=3, repetition_penalty=1.1)
    for policy in POLICIES:
        assert reply(thinking, sampling, policy).thought == "Hm, a cat"


def test_every_token_counts_and_a_thought_may_not_come_to_its_end(thinking: Model) -> None:
    generation = reply(thinking, Sampling(max_tokens=4))
    assert (generation.thought, generation.text, generation.finish_reason) == ("Hm, a", "", "length")
    generation = reply(thinking, Sampling(stop_ids=(thinking.tokenizer.token_to_id(" cat"),)))
    assert (generation.thought, generation.text, generation.finish_reason) == ("Hm, a", "", "stop")
    assert generation.tokens[-1].thought == ""
    with pytest.raises(BadInputError, match="think-tokens -1: must be a whole number"):
        Sampling(think_tokens=-1)


def test_stop_strings_end_the_answer_not_the_thought(thinking: Model) -> None:
    generation = reply(thinking, Sampling(stop=("cat",)))
    assert (generation.thought, generation.text, generation.finish_reason) == (THOUGHT, "Two ", "stop")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_grammar_holds_from_the_end_of_the_thought_on(
    thinking: Model, opened: Model, always_draft: None, policy: str
) -> None:
    pytest.importorskip("llguidance")
    pattern = r"Two cats (see|eat) hens|[0-9]{3}"
    for model, budget in ((thinking, None), (thinking, 3), (opened, None), (opened, 0)):
        generation = reply(model, Sampling(grammar=Grammar.regex(pattern), think_tokens=budget), policy)
        assert re.fullmatch(pattern, generation.text) and generation.finish_reason == "stop"
        assert generation.thought == {None: THOUGHT, 3: "Hm, a", 0: ""}[budget]
    end = thinking.tokenizer.token_to_id("</s>")
    eager = Sampling(grammar=Grammar.regex("[a-c]"), logit_bias={end: 100}, max_tokens=5)
    assert reply(thinking, eager, policy).finish_reason == "length"  # a thought ends no reply that must have an answer
    assert reply(thinking, Sampling(grammar=Grammar.regex("Two cats")), policy, **WITHOUT).text == "Two cats"


def test_a_grammar_holds_from_the_start_where_the_marker_takes_several_tokens(spelt: Model) -> None:
    pytest.importorskip("llguidance")
    generation = reply(spelt, Sampling(grammar=Grammar.regex("Two cats")))
    assert (generation.thought, generation.text) == ("", "Two cats")


def test_the_template_sees_its_variables_and_earlier_thoughts(thinking: Model) -> None:
    generation = reply(thinking, **WITHOUT)
    assert (generation.thought, generation.text) == ("", ANSWER)
    session = thinking.session()
    first = session.chat(CHAT)
    assert list(first)
    answered = {"role": "assistant", "content": first.text, "reasoning_content": first.thought}
    chat = [*CHAT, answered, {"role": "user", "content": "And?"}]
    second = session.chat(chat)
    assert list(second) and (second.thought, second.text) == (THOUGHT, ANSWER)
    assert THOUGHT not in thinking.tokenizer.decode(thinking.encode_chat(chat), skip_special_tokens=False)
    kept = thinking.encode_chat(chat, chat_template_kwargs={"preserve_thinking": True})
    assert f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}</s>" in thinking.tokenizer.decode(kept, skip_special_tokens=False)
    assert session.ids[: len(kept)] != list(kept)


@pytest.mark.parametrize("context_full", ["truncate-left", "shift"])
def test_a_shortened_prompt_is_split_all_the_same(thinking: Model, context_full: str) -> None:
    with thinking.session().chat(CHAT, context_full=context_full) as stream:
        assert list(stream) and stream.thought == THOUGHT
