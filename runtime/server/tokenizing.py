"""/tokenize and /detokenize, as clients of vLLM and llama.cpp ask for them: texts and conversations as token ids."""

from __future__ import annotations

from typing import Any

from rrt_edge.runtime.decoding.token_bytes import in_text
from rrt_edge.runtime.errors import about
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.conversations import read_prompt
from rrt_edge.runtime.server.fields import Fields
from rrt_edge.runtime.server.tools import read_tools

CHAT = frozenset({"messages", "tools", "tool_choice", "parallel_tool_calls", "documents", "chat_template_kwargs"})
TEXT = frozenset({"prompt", "content", "add_special_tokens", "add_special", "parse_special"})
TOLD = frozenset({"model", "return_token_strs", "with_pieces"})


def tokenize(body: Any, model: Model) -> dict[str, Any]:
    """The token ids of `prompt` (vLLM), `content` (llama.cpp) or `messages`, and how many there are.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: the tokenizer or the chat template refuses it.
    """
    fields = Fields.of(body, CHAT | TEXT | TOLD, {}, frozenset({"add_generation_prompt"}))
    given = [name for name in ("prompt", "content", "messages") if name in fields]
    if len(given) != 1:
        raise ApiError(
            400, "prompt: give one of prompt, content (both texts) and messages", given[-1] if given else "prompt"
        )
    (name,) = given
    if name == "messages":
        tools = read_tools(fields, model)
        ids = read_prompt(fields, model, None if tools is None else tools.shown)
    else:
        text = fields.text(name) or ""
        with about(name):
            insides(model).check_length(text)
            ids = insides(model).encode(text, _special(fields, name == "prompt"))
    pieces = [in_text(insides(model).token_bytes(id)) for id in ids]
    told: dict[str, Any] = {"count": len(ids), "max_model_len": model.context, "tokens": list(ids)}
    if fields.flag("with_pieces"):
        told["tokens"] = [{"id": id, "piece": piece} for id, piece in zip(ids, pieces, strict=True)]
    return {**told, "token_strs": pieces} if fields.flag("return_token_strs") else told


def detokenize(body: Any, model: Model) -> dict[str, Any]:
    """The text of `tokens`, under vLLM's name and llama.cpp's; raises ApiError."""
    fields = Fields.of(body, frozenset({"model", "tokens"}), {}, frozenset())
    tokens, vocabulary = fields.get("tokens"), model.manifest.architecture.vocabulary
    if not isinstance(tokens, list) or not all(isinstance(id, int) and not isinstance(id, bool) for id in tokens):
        raise ApiError(400, "tokens: must be a list of token ids", "tokens")
    if wrong := [id for id in tokens if not 0 <= id < vocabulary]:
        raise ApiError(400, f"tokens: {wrong[0]} is none of the {vocabulary} tokens", "tokens")
    text = model.tokenizer.decode(tokens, skip_special_tokens=False)
    return {"prompt": text, "content": text}


def _special(fields: Fields, otherwise: bool) -> bool:
    """Whether the tokenizer adds its special tokens: the two programs differ where the request does not say."""
    for name in ("add_special_tokens", "add_special"):
        if name in fields:
            return fields.flag(name)
    return otherwise
