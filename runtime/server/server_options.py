"""How a bundle is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rrt_edge.runtime.bundle.kv_rule_names import RunRuleName
from rrt_edge.runtime.engine import KV_BUDGET
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.server.connections import Limits

MOST_GRACE = 86_400  # seconds
CHAT_TOKENS = 1024  # of a chat's reply, where neither the request, nor the bundle, nor the server says how many
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclass(frozen=True)
class ServerOptions:
    """How a bundle is served.

    Attributes:
        name: what clients call the model.
        aliases: further names of it.
        any_model: whatever clients call the model, it is this one.
        exit_policy: of requests that name none; by default the bundle's own.
        api_key: what clients must send as a bearer token, if anything.
        origins: web pages of other origins that may call.
        hosts: names in the Host header that are answered; empty: any. Protects a server on this machine from web pages
            that rebind their name to it.
        most_waiting: requests that may wait; a further one gets status 429.
        most_tokens: of one reply.
        default_tokens: of a chat's reply, where neither the request nor the bundle says how many.
        most_bytes: of one request's body.
        kv_budget_bytes: keys and values that running requests may hold.
        kv_rule: where it is to be another than the one the model was loaded with.
        page: the file served at `/`, if any.
        limits: of connections.
        grace: seconds that running replies have to end when the server is told to.
    """

    name: str
    aliases: tuple[str, ...] = ()
    any_model: bool = False
    exit_policy: str | None = None
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOCAL
    most_waiting: int = 64
    most_tokens: int = 4096
    default_tokens: int = CHAT_TOKENS
    most_bytes: int = 1 << 20
    kv_budget_bytes: int = KV_BUDGET
    kv_rule: RunRuleName | None = None
    page: Path | None = None
    limits: Limits = field(default_factory=Limits)
    grace: float = 30

    def __post_init__(self) -> None:
        for name in ("most_waiting", "most_tokens", "default_tokens", "most_bytes", "kv_budget_bytes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if not 0 <= self.grace <= MOST_GRACE:
            raise BadInputError(f"grace {self.grace}: must be from 0 to {MOST_GRACE} seconds")

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model, each once."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


def hosts_for(host: str) -> Sequence[str]:
    """Names in the Host header that a server bound to an address answers: on this machine alone, this machine's."""
    return LOCAL if host in LOCAL else ()
