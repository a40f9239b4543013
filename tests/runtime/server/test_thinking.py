"""Thoughts as `openai`'s client sees them, over a socket."""

from __future__ import annotations

import re
from pathlib import Path

import openai
import pytest

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from tests.serving import Served
from tests.thinker import ANSWER, THOUGHT

CHAT = [{"role": "user", "content": "The cat"}]
TOKENS, REASONING = 16, 9  # of the whole reply, the end included; of the thought, the markers included


@pytest.fixture(scope="module")
def served(serve, thinker: Path) -> Served:
    return serve(thinker, "--name", "thinker")


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **fields: object):
    return client.chat.completions.create(model="thinker", messages=CHAT, **fields)  # type: ignore[call-overload]


def test_the_thought_stands_beside_the_answer_and_counts(client: openai.OpenAI) -> None:
    whole = ask(client)
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)
    assert whole.usage.completion_tokens == TOKENS
    assert whole.usage.completion_tokens_details.reasoning_tokens == REASONING


def test_a_stream_tells_the_thought_first(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert "".join(thought or "" for thought in thoughts) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert deltas[0].role == "assistant" and not any(delta.role for delta in deltas[1:])
    kinds = [
        "thought" if thought else "answer"
        for thought, delta in zip(thoughts, deltas, strict=True)
        if delta.content or thought
    ]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"thought", "answer"}
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == REASONING


def test_budgets_stops_and_grammars_are_of_thought_and_answer(client: openai.OpenAI) -> None:
    for budget, thought in ((0, None), (3, "Hm, a")):
        message = ask(client, extra_body={"think_tokens": budget}).choices[0].message
        assert (getattr(message, "reasoning_content", None), message.content) == (thought, ANSWER)
    stopped = ask(client, stop=["cat"]).choices[0]
    assert (stopped.message.content, stopped.message.reasoning_content, stopped.finish_reason) == (
        "Two ",
        THOUGHT,
        "stop",
    )
    schema = {
        "type": "object",
        "properties": {"hens": {"enum": ["two"]}},
        "required": ["hens"],
        "additionalProperties": False,
    }
    given = {"type": "json_schema", "json_schema": {"name": "hens", "schema": schema}}
    followed = ask(client, response_format=given).choices[0].message
    assert (followed.content, followed.reasoning_content) == ('{"hens": "two"}', THOUGHT)
    with pytest.raises(openai.BadRequestError, match="think_tokens -1"):
        ask(client, extra_body={"think_tokens": -1})


def test_log_probabilities_are_told_apart(client: openai.OpenAI) -> None:
    logprobs = ask(client, logprobs=True, top_logprobs=1).choices[0].logprobs
    assert "".join(entry.token for entry in logprobs.content) == f"\n\n{ANSWER}</s>"
    assert "".join(entry["token"] for entry in logprobs.reasoning_content) == f"<think>\n{THOUGHT}\n</think>"
    forced = ask(client, logprobs=True, extra_body={"think_tokens": 0}).choices[0].logprobs.reasoning_content
    assert forced[1]["token"] == "\n" and forced[2]["token"] == "</think>"
    assert forced[2]["logprob"] < -5  # as the model rates it, though it had no choice


def test_tokens_with_depths_say_which_are_of_the_thought(client: openai.OpenAI) -> None:
    tokens = ask(client, extra_body={"return_depths": True}).choices[0].model_extra["rrt_edge"]["tokens"]
    assert ["thought" in token for token in tokens] == [True] * REASONING + [False] * (TOKENS - REASONING)
    assert "".join(token.get("thought", "") for token in tokens) == THOUGHT
    assert "".join(token["text"] for token in tokens) == ANSWER


def test_variables_of_the_template_pass_through(client: openai.OpenAI) -> None:
    message = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
    assert message.content == ANSWER and not hasattr(message, "reasoning_content")
    answered = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    prompts = {}
    for keep in (False, True):
        asked = client.chat.completions.create(
            model="thinker", messages=[*CHAT, answered, *CHAT],
            extra_body={"chat_template_kwargs": {"preserve_thinking": keep, "tool_call_format": "xml"}},
        )  # fmt: skip
        assert asked.choices[0].message.content == ANSWER
        prompts[keep] = asked.usage.prompt_tokens
    assert prompts[True] > prompts[False]


def test_completions_are_raw(client: openai.OpenAI) -> None:
    raw = client.completions.create(
        model="thinker", prompt="<assistant>", max_tokens=30, extra_body={"think_tokens": 0}
    )
    assert raw.choices[0].text == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    assert raw.usage.completion_tokens_details.reasoning_tokens == 0
    assert re.search("reasoning", raw.choices[0].model_dump_json()) is None
