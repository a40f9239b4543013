"""A bundle that is served: its engine, the thread that steps it, and what clients are told of it."""

from __future__ import annotations

import time
from typing import Any

from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.engine import Engine
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.aside import Trials
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.worker import Worker


class Served:
    """One bundle; `start` and `stop` are for the event loop."""

    def __init__(self, model: Model, options: ServerOptions) -> None:
        self.model, self.options = model, options
        self.engine = Engine(model, kv_rule=options.kv_rule, kv_budget_bytes=options.kv_budget_bytes)
        self.grammars = Trials(model, options.most_waiting)
        self.created = int(time.time())
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The thread of the engine, between `start` and `stop`."""
        assert self._worker is not None
        return self._worker

    @property
    def complaint(self) -> str:
        """What is wrong with the engine; empty where it is well."""
        return "" if self._worker is None else self._worker.complaint

    def start(self) -> None:
        self._worker = Worker(self.engine, self.options.most_waiting)

    def stop(self) -> None:
        """End the thread, which may take a step of the engine's."""
        self.grammars.close()
        self.worker.stop()

    def busy(self) -> ApiError:
        """Says when to come again: a second for each round of the engine's slots that waits."""
        slots = insides(self.model).runner.slots
        seconds = 1 + len(self.engine.waiting) // slots
        message = f"{len(self.engine.waiting)} requests wait already; try again in {seconds} s"
        return ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})

    def facts(self) -> dict[str, Any]:
        """What /v1/models tells of a bundle that is loaded, and could not of another."""
        loaded = insides(self.model)
        return {
            "context": self.model.context,
            "depths": list(loaded.exits.readable),
            "exit_policy": self.options.exit_policy or loaded.exits.own_policy,
            "kv_rule": self.engine.kv_rule,
            "max_tokens": self.options.most_tokens,
            "default_max_tokens": self.default_tokens,
        }

    @property
    def default_tokens(self) -> int:
        """Tokens at most of a chat's reply where the request does not say how many."""
        default, most = Sampling(max_tokens=self.options.default_tokens), self.options.most_tokens
        return self.model.sampling(default, most_tokens=most).max_tokens
