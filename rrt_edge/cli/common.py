"""What the commands share: one-line errors, exit statuses, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

Command = TypeVar("Command", bound=Callable[..., Any])
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def guarded(command: Command) -> Command:
    """Turn errors into one line (or a JSON object) on standard error and an exit status: 2 bad input, 1 a failure."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        context = click.get_current_context()
        try:
            return command(*args, **kwargs)
        except RRTEdgeError as error:
            if context.find_root().params.get("debug"):
                raise
            complain(error, str(error), bool(kwargs.get("as_json")))
            context.exit(2 if isinstance(error, BadInputError) else 1)
        except ModuleNotFoundError as error:
            extra = "train" if error.name in ("accelerate", "datasets") else "export"
            hint = f"needs {error.name}, which is not installed: pip install 'rrt-edge[{extra}]'"
            complain(error, f"rrt-edge {context.info_name} {hint}", bool(kwargs.get("as_json")))
            context.exit(2)
        except KeyboardInterrupt:
            complain(RRTEdgeError(), "interrupted; nothing half written was left behind", bool(kwargs.get("as_json")))
            context.exit(130)

    return run  # type: ignore[return-value]


def complain(error: Exception, message: str, as_json: bool) -> None:
    line = " ".join(message.split())
    if as_json:
        line = json.dumps({"error": {"type": type(error).__name__, "message": line}})
    click.echo(line if as_json else f"error: {line}", err=True)


def print_json(value: Any) -> None:
    found = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(found))


def quiet_transformers() -> None:
    """Our own progress bars and reports say what transformers' would."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
