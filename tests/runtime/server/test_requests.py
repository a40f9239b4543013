"""Requests as programs written for other servers send them, with the real client over a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rrt_edge.runtime import Model
from tests.serving import serving_here

MESSAGES = [{"role": "user", "content": "The cat"}]


@pytest.fixture(scope="module")
def served(serve, bundle: Path):
    return serve(bundle, "--name", "hens", "--alias", "gpt-4o", "--alias", "local", "--default-tokens", "5")


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_defaults_written_out_are_no_request_for_more(client: openai.OpenAI) -> None:
    absent: dict[str, Any] = dict.fromkeys(["max_completion_tokens", "seed", "stop", "tools", "logit_bias", "user"])
    written = {"n": 1, "top_p": 1, "logprobs": False, "modalities": ["text"], "response_format": {"type": "text"}}
    chat = client.chat.completions.create(model="hens", messages=MESSAGES, max_tokens=3, extra_body=absent, **written)
    assert chat.usage.completion_tokens == 3 and "ignored" not in chat.model_extra["rrt_edge"]
    completion = client.completions.create(
        model="hens", prompt="The cat", max_tokens=3, best_of=1, echo=False, suffix="", seed=-1, temperature=1, n=1
    )
    assert completion.usage.completion_tokens == 3
    for n in (1, 2):
        with pytest.raises(openai.BadRequestError, match=f"best_of {n + 1}: must be n, {n}") as caught:
            client.completions.create(model="hens", prompt="The cat", best_of=n + 1, n=n)
        assert caught.value.param == "best_of"


def test_signed_seeds_are_seeds(client: openai.OpenAI) -> None:
    asked = {"model": "hens", "prompt": "The cat", "max_tokens": 8, "temperature": 1.5}
    texts = [client.completions.create(**asked, seed=seed).choices[0].text for seed in (-1, -1, -2)]
    assert texts[0] == texts[1] != texts[2]
    pair = client.completions.create(**asked, seed=-1, n=2).choices
    assert pair[0].text == texts[0] and pair[1].text == client.completions.create(**asked, seed=0).choices[0].text


def test_how_many_tokens_there_may_be_is_told(served, client: openai.OpenAI) -> None:
    about = client.models.retrieve("hens").model_extra["rrt_edge"]
    assert (about["max_tokens"], about["default_max_tokens"]) == (4096, 5)
    whole = client.chat.completions.create(model="hens", messages=MESSAGES, logit_bias={"0": -100})
    assert whole.usage.completion_tokens == 5 and whole.choices[0].finish_reason == "length"
    assert whole.model_extra["rrt_edge"]["max_tokens"] == 5
    several = client.chat.completions.create(model="hens", messages=MESSAGES, max_completion_tokens=10**6, stream=True)
    with several:
        assert next(iter(several)).model_extra["rrt_edge"]["max_tokens"] == 4096


def test_fields_that_change_nothing_are_told(client: openai.OpenAI) -> None:
    more = {"mirostat": 2, "exit_policy": "full"}
    asked = {"model": "hens", "messages": MESSAGES, "verbosity": "low", "max_tokens": 2, "extra_body": more}
    whole = client.chat.completions.create(**asked)
    assert whole.model_extra["rrt_edge"]["ignored"] == ["verbosity", "mirostat"]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].model_extra["rrt_edge"]["ignored"] == ["verbosity", "mirostat"]
    with pytest.raises(openai.BadRequestError, match="did you mean exit_policy") as caught:
        client.chat.completions.create(model="hens", messages=MESSAGES, extra_body={"exit_polcy": "full"})
    assert caught.value.param == "exit_polcy"


def test_a_grammar_that_is_none_is_of_its_field(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    for more in ({"regex": "("}, {"grammar": "start: x"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="hens", prompt="a", extra_body=more)
        assert caught.value.param == next(iter(more))
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="hens", messages=MESSAGES, response_format=schema)
    assert caught.value.param == "response_format"


def test_token_ids_that_the_model_has_not_are_of_their_field(client: openai.OpenAI) -> None:
    for more, param in (
        ({"prompt": [10**6]}, "prompt"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "hens", "prompt": "a", **more})
        assert caught.value.param == param


def test_a_base_url_without_v1_is_told_the_right_one(served) -> None:
    for wrong in ("", "/v1/v1", "/api"):
        client = openai.OpenAI(base_url=f"{served.url}{wrong}", api_key="none", max_retries=0)
        with pytest.raises(openai.NotFoundError, match=f"give clients {served.url}/v1 as the base URL"):
            client.chat.completions.create(model="hens", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError, match="it is at /v1/models here"):
            client.models.list()


def test_a_model_has_several_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["hens", "gpt-4o", "local"]
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    assert client.completions.create(model="local", prompt="a", max_tokens=1).model == "local"
    with pytest.raises(openai.NotFoundError, match=r"'hens' and 'gpt-4o' and 'local'.*--alias NAME, or --any-"):
        client.completions.create(model="gpt-5", prompt="a", max_tokens=1)


def test_any_model_may_be_asked_for(serve, bundle: Path) -> None:
    served = serve(bundle, "--any-model")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert client.completions.create(model="gpt-5", prompt="a", max_tokens=1).model == "gpt-5"
    assert served.post("/v1/completions", {"model": 5, "prompt": "a"}).status_code == 404


def test_the_assistants_words_go_on(served, client: openai.OpenAI, bundle: Path) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "sat"}]
    with Model.load(bundle) as model:
        prompt = model.template.render(MESSAGES) + "sat"
        expected = model.encode(prompt)
        assert model.encode_chat(begun) == model.tokenizer.encode(prompt, add_special_tokens=False).ids
    went_on = client.chat.completions.create(model="hens", messages=begun, max_tokens=4)
    assert went_on.usage.prompt_tokens <= len(expected)
    plain = client.completions.create(model="hens", prompt=prompt, max_tokens=4)
    assert went_on.choices[0].message.content == plain.choices[0].text


def test_half_an_emoji_is_no_json(served) -> None:
    for path, body in (("chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}),
                       ("completions", {"prompt": "\udc80"})):  # fmt: skip
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{served.url}/v1/{path}", content=json.dumps(body), headers=headers)
        assert answer.status_code == 400 and "half a character" in answer.json()["error"]["message"]


def test_log_probabilities_have_the_tokens_own_bytes(client: openai.OpenAI, bundle: Path) -> None:
    with Model.load(bundle) as model:
        ids = model.tokenizer.encode("🤖日", add_special_tokens=False).ids
    said = b""
    for token in ids:
        asked = {"model": "hens", "max_tokens": 1, "logit_bias": {str(token): 100}}
        chat = client.chat.completions.create(**asked, messages=MESSAGES, logprobs=True)
        entry = chat.choices[0].logprobs.content[0]
        said += bytes(entry.bytes)
        told = client.completions.create(**asked, prompt="The cat", logprobs=0).choices[0].logprobs.tokens[0]
        assert told in (bytes(entry.bytes).decode(errors="ignore"), f"bytes:{entry.token}")
    assert said.decode().strip() == "🤖日" and len(ids) > 2


def test_log_probabilities_of_completions_join_to_the_text(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    choice = client.completions.create(
        model="hens", prompt="The cat", max_tokens=99, logprobs=1, extra_body={"regex": "日本 (the|cat|🙂){6}, é"}
    ).choices[0]
    offsets, tokens = choice.logprobs.text_offset[:-1], choice.logprobs.tokens[:-1]  # the last one ends it
    assert choice.text.startswith("日本") and choice.text.endswith(", é") and any(map(is_part, tokens))
    for offset, token in zip(offsets, tokens, strict=True):
        assert is_part(token) or choice.text[offset:].startswith(token), (offset, token)


def is_part(token: str) -> bool:
    """Whether a token is a part of a character."""
    return token.startswith("bytes:")


def test_json_is_whole_where_tokens_run_out(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    text = {"type": "string", "minLength": 3}
    schema = {"type": "object", "properties": {"a": text, "b": text}, "required": ["a", "b"]}
    forms = {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reasons = set[str]()
    for form, keys in zip(forms, (set(), {"a", "b"}), strict=True):
        for most in (40, 60):
            asked = {"model": "hens", "messages": MESSAGES, "response_format": form, "max_tokens": most}
            choice = client.chat.completions.create(**asked, temperature=1.5, seed=most).choices[0]
            chunks = list(client.chat.completions.create(**asked, temperature=1.5, seed=most, stream=True))
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            for text, finish_reason in (
                (choice.message.content, choice.finish_reason), (streamed, chunks[-1].choices[0].finish_reason)
            ):  # fmt: skip
                assert keys <= json.loads(text).keys()
                reasons.add(finish_reason)
    assert "length" in reasons <= {"length", "stop"}
    with pytest.raises(
        openai.BadRequestError, match="max_tokens 3: the shortest reply that the grammar allows"
    ) as caught:
        client.chat.completions.create(model="hens", messages=MESSAGES, response_format=forms[1], max_tokens=3)
    assert caught.value.param == "max_tokens"


def test_a_full_context_drops_the_oldest_messages_where_that_is_asked_for(bundle: Path) -> None:
    """As in Python, and the answer says how many."""
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": "user", "content": "The cat eats. " * 3}, {"role": "assistant", "content": "So it does."}] * 6
    asked: dict[str, Any] = {"model": "here", "messages": [system, *turns, *MESSAGES], "max_tokens": 8}
    with Model.load(bundle, context=128) as model, serving_here(model) as here:
        client = openai.OpenAI(base_url=f"http://{here.host}:{here.port}/v1", api_key="none", max_retries=0)
        for context_full in (None, "error"):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**asked, extra_body={"context_full": context_full})
            assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
        ours = {"context_full": "truncate-left"}
        expected = model.generate(asked["messages"], max_tokens=8, context_full="truncate-left")
        whole = client.chat.completions.create(**asked, extra_body=ours)
        assert whole.choices[0].message.content == expected.text
        assert whole.usage.prompt_tokens == expected.stats.prompt_tokens <= 120
        left_out = whole.model_extra["rrt_edge"]["messages_left_out"]
        kept = [system, *asked["messages"][1 + left_out :]]
        assert kept[1]["role"] == "user" and len(model.encode_chat(kept)) == expected.stats.prompt_tokens
        first = next(iter(client.chat.completions.create(**asked, extra_body=ours, stream=True)))
        assert first.model_extra["rrt_edge"]["messages_left_out"] == left_out
        short = client.chat.completions.create(**{**asked, "messages": MESSAGES}, extra_body=ours)
        assert "messages_left_out" not in short.model_extra["rrt_edge"]

        ids = list(range(20, 220))
        cut = client.completions.create(model="here", prompt=ids, max_tokens=8, extra_body=ours)
        assert cut.usage.prompt_tokens == 120
        assert cut.choices[0].text == model.generate(ids[-120:], max_tokens=8).text
        for path, prompt in (("chat.completions", {"messages": MESSAGES}), ("completions", {"prompt": "a"})):
            create = getattr(client, path.partition(".")[0])
            create = create.completions.create if "." in path else create.create
            with pytest.raises(openai.BadRequestError, match="context_full 'shift': must be error or truncate-left"):
                create(model="here", **prompt, extra_body={"context_full": "shift"})
            with pytest.raises(openai.BadRequestError, match="did you mean context_full"):
                create(model="here", **prompt, extra_body={"contextFull": "error"})
