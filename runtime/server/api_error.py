"""The errors that clients of the server see, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rrt_edge.runtime.errors import LONGEST, BadInputError, ContextFullError, RRTEdgeError, as_ours, one_line

log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer with an error status, in the form of OpenAI's API."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": one_line(self, LONGEST), "type": kind, "param": self.param, "code": self.code}}


def api_error(error: BaseException) -> ApiError:
    """An error, whatever it is, as the API tells it."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, RRTEdgeError):
        log.error("a request failed", exc_info=error)
    if not isinstance(error, BadInputError):
        return ApiError(500, str(as_ours(error)))
    code = "context_length_exceeded" if isinstance(error, ContextFullError) else None
    return ApiError(400, str(error), error.param or None, code)


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let bad input be told in a request's words: its fields, by ours, or by OpenAI's, where those are others."""
    try:
        yield
    except (BadInputError, ApiError) as error:
        if error.param:
            name = re.split(r"[.\[]", error.param)[0]
            told = names.get(name, name)
            error.param = told + error.param[len(name) :]
            error.args = (re.sub(rf"^{name.replace('_', '[-_ ]')}\b", told, str(error)),)
        raise


def chained(names: Mapping[str, str], further: Mapping[str, str]) -> dict[str, str]:
    """Names for `named` where what `names` gives is called otherwise once more."""
    return {**further, **{name: further.get(told, told) for name, told in names.items()}}


def is_cancelled(error: BaseException) -> bool:
    """Whether the task that caught an error is to end: another's cancellation is an error like others."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError | GeneratorExit) and task is not None and task.cancelling() > 0
