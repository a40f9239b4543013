"""What answers tell beside the words of replies: log probabilities, depths, counts and cost."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from rrt_edge.runtime.bundle.messages import ChatPrompt
from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.token_bytes import in_text
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.door import Ask


def token_logprobs(model: Model, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Each token with its log probability and the likeliest others, as chats tell them."""

    def entry(id: int, logprob: float | None) -> dict[str, Any]:
        content = insides(model).token_bytes(id)
        return {"token": in_text(content), "logprob": logprob, "bytes": list(content)}

    return [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top_logprobs]}
        for token in tokens
    ]


def chat_logprobs(model: Model, tokens: Sequence[Token]) -> dict[str, Any]:
    """The log probabilities of a chat's reply, those of its thought apart."""
    thought = [token for token in tokens if token.thought is not None]
    content = [token for token in tokens if token.thought is None]
    logprobs = {"content": token_logprobs(model, content), "refusal": None}
    return {**logprobs, "reasoning_content": token_logprobs(model, thought)} if thought else logprobs


def text_logprobs(model: Model, tokens: Sequence[Token]) -> dict[str, Any]:
    """The log probabilities of a completion."""
    decoder, offset, offsets = getincrementaldecoder("utf-8")("replace"), 0, []
    for token in tokens:
        offsets.append(offset)
        offset += len(decoder.decode(insides(model).token_bytes(token.id)))
    return {
        "tokens": [_text(model, token.id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_text(model, other): value for other, value in token.top_logprobs} for token in tokens],
        "text_offset": offsets,
    }


def with_depths(model: Model, tokens: Sequence[Token]) -> dict[str, Any]:
    """The tokens with the depths they left at."""
    return {"tokens": [_with_depth(model, token) for token in tokens]}


def _with_depth(model: Model, token: Token) -> dict[str, Any]:
    payload = {"id": token.id, "text": token.text, "depth": token.depth, "gate": token.gate}
    payload["gates"] = list(token.gates)
    if token.first_loop is not None:
        payload["first_loop"] = {"id": token.first_loop, "text": _text(model, token.first_loop)}
    return payload if token.thought is None else {**payload, "thought": token.thought}


def _text(model: Model, token: int) -> str:
    """A token as completions tell it: in words of its own where it is a part of a character."""
    content = insides(model).token_bytes(token)
    text = in_text(content)
    return text if text.encode() == content else f"bytes:{text}"


def usage(prompts: Sequence[Sequence[int]], generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of the prompts, counted once each, and of the replies, with those of their thoughts."""
    prompt_tokens = sum(map(len, prompts))
    said = sum(len(reply.tokens) for reply in generations)
    thought = sum(token.thought is not None for reply in generations for token in reply.tokens)
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": said, "total_tokens": prompt_tokens + said}
    return {**counts, "completion_tokens_details": {"reasoning_tokens": thought}}


def statistics(generations: Sequence[Generation]) -> dict[str, Any]:
    """Return the cost of the replies together."""
    tokens = sum(reply.stats.generated_tokens for reply in generations)
    depths = sum(reply.stats.mean_depth * reply.stats.generated_tokens for reply in generations)
    rows = sum(reply.stats.block_rows_per_token * reply.stats.generated_tokens for reply in generations)
    steps = sum(reply.stats.steps_per_token * reply.stats.generated_tokens for reply in generations)
    speeds = [reply.stats.decode_tokens_per_second for reply in generations]
    return {
        "mean_depth": round(depths / tokens, 4),
        "block_rows_per_token": round(rows / tokens, 4),
        "steps_per_token": round(steps / tokens, 4),
        "drafted": sum(reply.stats.drafted for reply in generations),
        "accepted": sum(reply.stats.accepted for reply in generations),
        "text_drafted": sum(reply.stats.text_drafted for reply in generations),
        "text_accepted": sum(reply.stats.text_accepted for reply in generations),
        "tokens_per_second": round(sum(speeds) / len(speeds), 2),
        "device": generations[0].stats.device,
        "kv_rule": generations[0].stats.kv_rule,
        "time_to_first_token_s": max(reply.stats.time_to_first_token_s for reply in generations),
    }


def terms(ask: Ask) -> dict[str, Any]:
    """What the request did not say, or said in vain."""
    told: dict[str, Any] = {"max_tokens": ask.sampling.max_tokens}
    left_out = sum(prompt.left_out for prompt in ask.prompts if isinstance(prompt, ChatPrompt))
    if left_out:
        told["messages_left_out"] = left_out
    return {**told, "ignored": list(ask.ignored)} if ask.ignored else told


def about(ask: Ask, generations: Sequence[Generation]) -> dict[str, Any]:
    """What stands under `rrt_edge` beside whole replies."""
    return {**terms(ask), **statistics(generations)}
