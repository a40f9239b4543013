"""What programs call and get: prompts, options and replies as types, two of them protocols.

A program that takes a `TextModel` runs with a `Model`, with a `Session`, and in its own tests with any object that has
the same methods; a subclass of `TextModel` needs `stream` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypedDict, Unpack, runtime_checkable

from rrt_edge.runtime.bundle.messages import Message, as_messages
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import RRTEdgeError

Prompt = str | Sequence[Message] | Sequence[int]  # what a user says, a conversation, or token ids
ContextFull = Literal["error", "truncate-left", "shift"]


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, as keyword arguments and dictionaries have them."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    n: int
    max_tokens: int
    think_tokens: int | None
    min_tokens: int
    stop: str | Sequence[str]
    stop_ids: int | Sequence[int]
    logprobs: int | None
    max_length: int | None
    grammar: Grammar | None
    first_loop: bool


class ReplyOptions(SamplingFields, total=False):
    """The keyword arguments of all that replies: the fields of `Sampling`, and these.

    Attributes:
        raw: go on from a text as it is, where the bundle has a chat template too.
        context_full: what to do with a prompt that leaves no room for a reply: `error`; `truncate-left`, drop its
            oldest messages but for a system's, then its oldest tokens, so that half the context or `max_tokens` are
            free; `shift`, the same, and where a reply fills the context, drop the older half of what is held, run the
            rest again and go on.
        tools: the functions that the model may call, as JSON schemas, for the chat template.
        chat_template_kwargs: further variables of the template: `enable_thinking`, `documents`.
    """

    raw: bool
    context_full: ContextFull
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


class Stream(Protocol):
    """The tokens of one reply, for `for` and for `async for`. The model runs as they are asked for.

    Nothing runs on once the stream is closed, left (`with`, or the last reference gone) or cancelled: within one block
    step, prompts included. The session keeps what it held of the conversation by then.
    """

    def __iter__(self) -> Iterator[Token]: ...

    def __next__(self) -> Token: ...

    def __aiter__(self) -> AsyncIterator[Token]: ...

    async def __anext__(self) -> Token:
        """The next token, from a thread beside the event loop; a cancelled task waits for the block step under way."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None:
        """End the reply here."""

    def cancel(self) -> None:
        """End the reply from any thread: the one that asks for tokens gets none behind the block step under way."""

    @property
    def text(self) -> str:
        """The answer so far."""
        ...

    @property
    def thought(self) -> str:
        """What the model thought before it answered, so far."""
        ...

    @property
    def generation(self) -> Generation:
        """The reply so far, with its statistics.

        Raises:
            BadInputError: no token has come yet.
        """
        ...


class Request(Protocol):
    """One prompt of an `Engine` and its reply so far."""

    number: int
    tokens: list[Token]
    finish_reason: str
    """Empty until it ends: `stop`, `length`, `cancelled`, or `error`."""
    error: RRTEdgeError | None
    """Why its part of a step failed."""

    @property
    def text(self) -> str:
        """The answer so far."""
        ...

    @property
    def generation(self) -> Generation:
        """The reply so far, with its statistics.

        Raises:
            BadInputError: no token has come yet.
        """
        ...


@runtime_checkable
class TextModel(Protocol):
    """What replies to prompts: a `Model`, each prompt in a conversation of its own, or a `Session`, in one.

    A prompt is a text, messages or token ids. A text is what a user says: it is put into the bundle's chat template,
    where there is one, as on the command line; `raw=True` goes on from it as it is. Sampling is a `Sampling`, taken as
    it is, or a mapping of its fields; what neither it nor keyword arguments say is as the bundle's makers chose.
    """

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Stream:
        """Reply to a prompt, token by token; arguments and errors are told at `Model.stream`."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Stream:
        """`stream` of messages alone: the assistant's next turn. What messages may have, and what the template sees of
        them, is said at `Model.encode_chat`.
        """
        return self.stream(as_messages(messages), sampling, exit_policy, **options)

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Generation:
        """Like `stream`, but returns once all is generated, with statistics."""
        with self.stream(prompt, sampling, exit_policy, **options) as stream:
            for _ in stream:
                pass
        return stream.generation

    async def agenerate(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Generation:
        """`generate` for asyncio: the event loop goes on meanwhile, and a cancelled task ends the reply."""
        async with await asyncio.to_thread(self.stream, prompt, sampling, exit_policy, **options) as stream:
            async for _ in stream:
                pass
        return stream.generation
