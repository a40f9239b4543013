"""A door: the path of an API, how its requests are read, and how the replies are told there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.tools import Tools


@dataclass(frozen=True)
class Ask:
    """One request: prompts as token ids, how to reply to each, and what of the reply is to be told.

    Attributes:
        tools: functions that the reply may call.
        ignored: fields that change nothing.
        names: how the request names what Python calls otherwise.
        echo: fields that the answer repeats.
    """

    prompts: tuple[list[int], ...]
    sampling: Sampling
    policy: ExitPolicy
    stream: bool
    include_usage: bool
    return_depths: bool
    tools: Tools | None
    ignored: tuple[str, ...]
    names: Mapping[str, str]
    echo: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> int:
        """How many replies there are: `Sampling.n` for each prompt."""
        return len(self.prompts) * self.sampling.n


class Stream(Protocol):
    """Tells the replies to one request as they come, in pieces of the answer's body."""

    def begin(self) -> Iterable[str]:
        """What comes before the first token."""
        ...

    def token(self, index: int, token: Token, finish_reason: str) -> Iterable[str]:
        """What a token of reply `index` adds; the last one of a reply has its reason."""
        ...

    def end(self, generations: Sequence[Generation]) -> Iterable[str]:
        """What comes behind the last token."""
        ...

    def failed(self, error: ApiError) -> Iterable[str]:
        """What comes in place of all further tokens."""
        ...


class Answers(Protocol):
    """Tells the replies to one request."""

    media_type: str  # of a stream

    def stream(self) -> Stream: ...

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The replies at once."""
        ...


@dataclass(frozen=True)
class Door:
    """How one kind of request is read and answered.

    Attributes:
        read: the request that a body is; raises ApiError or BadInputError.
        answers: of a model by its name.
        at_once: what is answered without a reply of the model's, or None.
        unloads: whether a body only asks that the model be unloaded.
    """

    read: Callable[[Any, Model, ServerOptions], Ask]
    answers: Callable[[Model, str, Ask], Answers]
    at_once: Callable[[Any, str], dict[str, Any] | None] = lambda body, name: None
    unloads: Callable[[Any], bool] = lambda body: False


def event(value: Mapping[str, Any], name: str = "") -> str:
    """A server-sent event with an object of JSON."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n"
