"""/tokenize and /detokenize, asked as vLLM's and llama.cpp's clients ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from transformers import AutoTokenizer

from tests.serving import Served

TEXT = "Naïve 👋 café: os.path.join"
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def served(serve, bundle: Path) -> Served:
    return serve(bundle, "--name", "here")


@pytest.fixture(scope="module")
def tokenizer(bundle: Path):
    return AutoTokenizer.from_pretrained(bundle)


def post(served: Served, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/{path}", json=fields)


def test_texts_and_conversations_as_vllm_has_them(served: Served, tokenizer) -> None:
    found = post(served, "tokenize", model="here", prompt=TEXT, return_token_strs=True).json()
    assert found["tokens"] == tokenizer.encode(TEXT) and found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 512 and len(found["token_strs"]) == found["count"]
    bare = post(served, "tokenize", prompt=TEXT, add_special_tokens=False).json()["tokens"]
    assert bare == tokenizer.encode(TEXT, add_special_tokens=False)
    chat = post(served, "tokenize", messages=CHAT).json()["tokens"]
    assert chat == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert post(served, "detokenize", tokens=bare).json()["prompt"] == TEXT


def test_contents_as_llama_cpp_has_them(served: Served, tokenizer) -> None:
    bare = tokenizer.encode(TEXT, add_special_tokens=False)
    assert post(served, "tokenize", content=TEXT).json()["tokens"] == bare
    assert post(served, "tokenize", content=TEXT, add_special=True).json()["tokens"] == tokenizer.encode(TEXT)
    pieces = post(served, "tokenize", content=TEXT, with_pieces=True).json()["tokens"]
    assert [piece["id"] for piece in pieces] == bare and all(piece["piece"] for piece in pieces)
    assert post(served, "detokenize", tokens=bare).json()["content"] == TEXT
    assert post(served, "tokenize", content="").json()["tokens"] == []


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("tokenize", {}, "give one of prompt, content (both texts) and messages"),
        ("tokenize", {"prompt": "a", "content": "b"}, "give one of"),
        ("tokenize", {"prompt": 3}, "prompt: must be a text"),
        ("tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("tokenize", {"prompt": "a", "model": "other"}, "not served here"),
        ("tokenize", {"prompt": "a", "with_piece": True}, "did you mean with_pieces?"),
        ("detokenize", {}, "tokens: must be a list of token ids"),
        ("detokenize", {"tokens": ["a"]}, "tokens: must be a list of token ids"),
        ("detokenize", {"tokens": [10**9]}, "is none of the"),
    ],
)
def test_errors_name_the_field(served: Served, path: str, fields: dict[str, Any], told: str) -> None:
    response = post(served, path, **fields)
    assert response.status_code in (400, 404) and told in response.json()["error"]["message"]
