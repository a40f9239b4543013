"""The server as real clients see it: openai's and LangChain's, over a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest
from langchain_openai import ChatOpenAI

from rrt_edge.runtime import Model, Sampling
from tests.conftest import ROOT
from tests.serving import answer

QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]
OTHER = [{"role": "user", "content": "What does heapq.heappush do?"}]


@pytest.fixture(scope="module")
def served(serve, demo: Path):
    return serve(demo)


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.mark.slow
def test_openais_client_gets_what_the_model_says(client: openai.OpenAI, model: Model) -> None:
    assert [one.id for one in client.models.list()] == ["pydoc"]
    assert client.models.retrieve("pydoc").owned_by == "rrt-edge"
    whole = client.chat.completions.create(model="pydoc", messages=QUESTION)
    assert whole.choices[0].message.content == answer(model, QUESTION)
    assert whole.choices[0].finish_reason == "stop"
    prompt = len(model.encode_chat(QUESTION))
    assert whole.usage.prompt_tokens == prompt and whole.usage.total_tokens == prompt + whole.usage.completion_tokens


def test_streams_join_to_the_same_text_and_end_with_the_usage(client: openai.OpenAI, model: Model) -> None:
    asked = {"model": "pydoc", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(model, QUESTION)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 5 and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1
    with client.chat.completions.stream(model="pydoc", messages=QUESTION) as stream:
        assert stream.get_final_completion().choices[0].message.content == text


def test_depths_and_the_exit_policy_travel_beside_what_standard_clients_read(client: openai.OpenAI) -> None:
    for policy, depths in (("full", {2}), ("depth=1", {1})):
        whole = client.chat.completions.create(
            model="pydoc", messages=QUESTION, extra_body={"exit_policy": policy, "return_depths": True}
        )
        tokens = whole.choices[0].model_extra["rrt_edge"]["tokens"]
        assert {token["depth"] for token in tokens} == depths
        assert all(0 <= token["gate"] <= 1 for token in tokens)
        assert "".join(token["text"] for token in tokens) == whole.choices[0].message.content
        assert whole.model_extra["rrt_edge"]["mean_depth"] == depths.pop()


def test_log_probabilities_as_the_client_types_them(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate(model.encode_chat(QUESTION), Sampling(max_tokens=6, logprobs=3), "threshold").tokens
    asked = {"model": "pydoc", "messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx([token.logprob for token in expected], abs=1e-3)
    assert all(len(one.top_logprobs) == 3 and bytes(one.bytes).decode() == one.token for one in content)
    streamed = list(client.chat.completions.create(**asked, stream=True))
    assert [one.token for chunk in streamed for one in chunk.choices[0].logprobs.content] == [
        one.token for one in content
    ]
    prompt = model.template.render(QUESTION)
    plain = client.completions.create(model="pydoc", prompt=prompt, max_tokens=6, logprobs=3)
    assert plain.choices[0].logprobs.tokens == [one.token for one in content]
    assert plain.choices[0].logprobs.token_logprobs == pytest.approx([one.logprob for one in content], abs=1e-3)


def test_choices_seeds_stops_and_biases(client: openai.OpenAI) -> None:
    asked = {"model": "pydoc", "messages": QUESTION, "temperature": 1.5, "max_tokens": 20}
    alone = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (4, 4, 5)]
    assert alone[0] == alone[1] != alone[2]
    several = client.chat.completions.create(**asked, n=3, seed=4)
    assert len({choice.message.content for choice in several.choices}) == 3
    assert [choice.index for choice in several.choices] == [0, 1, 2] and several.usage.completion_tokens > 20
    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(**{**asked, "temperature": 0}, n=3, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    whole = client.chat.completions.create(**{**asked, "temperature": 0}).choices[0].message.content
    assert [streamed[index] for index in range(3)] == [whole] * 3
    free = client.chat.completions.create(model="pydoc", messages=QUESTION).choices[0].message.content
    word = free.split()[2]
    stopped = client.chat.completions.create(model="pydoc", messages=QUESTION, stop=[word]).choices[0]
    assert stopped.message.content == free[: free.index(word)] and stopped.finish_reason == "stop"
    banned = client.completions.create(model="pydoc", prompt=[5, 6, 7], max_tokens=1, logprobs=0)
    token = banned.choices[0].logprobs.tokens[0]
    other = client.completions.create(
        model="pydoc", prompt=[5, 6, 7], max_tokens=1, extra_body={"return_depths": True}
    ).choices[0]
    chosen = other.model_extra["rrt_edge"]["tokens"][0]["id"]
    biased = client.completions.create(
        model="pydoc", prompt=[5, 6, 7], max_tokens=1, logit_bias={str(chosen): -100}, logprobs=0
    )
    assert biased.choices[0].logprobs.tokens[0] != token


def test_several_prompts_make_as_many_completions(client: openai.OpenAI, model: Model) -> None:
    prompts = [model.template.render(one) for one in (QUESTION, OTHER)]
    found = client.completions.create(model="pydoc", prompt=prompts, max_tokens=60)
    assert [choice.text for choice in found.choices] == [answer(model, QUESTION), answer(model, OTHER)]


def test_a_json_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"verb": {"enum": ["join", "split"]}, "sure": {"type": "boolean"}},
        "required": ["verb", "sure"],
        "additionalProperties": False,
    }
    given = {"type": "json_schema", "json_schema": {"name": "verb", "schema": schema, "strict": True}}
    whole = client.chat.completions.create(model="pydoc", messages=QUESTION, response_format=given)
    found = json.loads(whole.choices[0].message.content)
    assert found["verb"] in ("join", "split") and isinstance(found["sure"], bool)
    by_pattern = client.chat.completions.create(model="pydoc", messages=QUESTION, extra_body={"regex": "[ab]{3}"})
    assert set(by_pattern.choices[0].message.content) <= {"a", "b"}


def test_requests_at_once_share_the_engine_and_get_their_own_answers(served, model: Model) -> None:
    names = [line for line in (ROOT / "samples" / "pydoc" / "names.txt").read_text("utf-8").split() if line][::300]
    chats = [[{"role": "user", "content": f"What does {name} do?"}] for name in names]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(messages: list[dict[str, str]]) -> str:
                stream = await client.chat.completions.create(model="pydoc", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(messages) for messages in chats))

    assert asyncio.run(all_at_once()) == [answer(model, messages) for messages in chats]


def test_langchain_talks_to_it(served, model: Model) -> None:
    chat = ChatOpenAI(model="pydoc", base_url=f"{served.url}/v1", api_key="none", temperature=0, max_retries=0)
    assert chat.invoke(QUESTION[0]["content"]).content == answer(model, QUESTION)
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION[0]["content"])) == answer(model, QUESTION)
    several = chat.batch([one[0]["content"] for one in (QUESTION, OTHER)])
    assert [one.content for one in several] == [answer(model, QUESTION), answer(model, OTHER)]
    assert several[0].usage_metadata["output_tokens"] > 5
    schema = {
        "title": "Verb", "type": "object", "properties": {"verb": {"enum": ["join", "split"]}}, "required": ["verb"],
        "additionalProperties": False,
    }  # fmt: skip
    assert chat.with_structured_output(schema, method="json_schema").invoke("Which?")["verb"] in ("join", "split")


@pytest.mark.slow
def test_a_wrong_request_is_an_error_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    wrong = [
        ({"temperature": -1}, "temperature -1"),
        ({"n": 0}, "n 0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"stop": [5]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "token id 99999"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: not supported"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "json-sch",
        ),
        ({"extra_body": {"exit_policy": "depth=9"}}, "exit_policy 'depth=9'"),
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"extra_body": {"stop_token_ids": 3}}, "stop_token_ids"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "only text"),
        ({"messages": []}, "messages"),
    ]
    for fields, line in wrong:
        with pytest.raises(openai.BadRequestError, match=line):
            client.chat.completions.create(**{"model": "pydoc", "messages": QUESTION, **fields})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="pydoc", messages=[{"role": "user", "content": "os " * 600}])
    assert caught.value.code == "context_length_exceeded"
