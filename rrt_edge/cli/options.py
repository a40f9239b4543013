"""The options that several commands take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rrt_edge.cli.common import Command
from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.devices.providers import DEVICES, VARIABLE, device_for

if TYPE_CHECKING:
    from rrt_edge.runtime import Grammar, Sampling

INITS = ("average", "stepwise", "lower", "random")


class Rank(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or a share of full rank below 1."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor a share of full rank below 1", param, ctx)
        return int(number) if number.is_integer() else number


POLICIES = (
    "full, depth=N, threshold=T, threshold for the bundle's calibrated one, an operating point (fast, balanced, "
    "faithful), lossless, or a budget: mean-depth=M, ms-per-token=T."
)


def sampling_options(command: Command) -> Command:
    """The options of `generate` and `chat` that choose tokens."""
    options = [
        click.option("--max-tokens", default=256, show_default=True, help="Tokens generated at most."),
        click.option("--min-tokens", default=0, show_default=True, help="Tokens before which nothing ends the reply."),
        click.option("--temperature", default=0.0, show_default=True, help="0 always takes the likeliest token."),
        click.option("--top-k", default=0, show_default=True, help="Only the k likeliest; 0: all."),
        click.option("--top-p", default=1.0, show_default=True, help="Only the likeliest that make up this share."),
        click.option("--min-p", default=0.0, show_default=True, help="Only those with this share of the likeliest's."),
        click.option("--typical-p", default=1.0, show_default=True, help="Only the most typical of this share."),
        click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: repeats less."),
        click.option("--presence-penalty", default=0.0, show_default=True, help="Against tokens the reply has."),
        click.option("--frequency-penalty", default=0.0, show_default=True, help="The same for each time it has them."),
        click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to a token's logit; repeatable."),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="End where this text comes; may be given several times."),
        click.option("--stop-id", "stop_ids", type=int, multiple=True, help="End at this token id; repeatable."),
        click.option("--exit-policy", default="full", show_default=True, help=POLICIES),
        click.option(
            "--kv-rule", type=click.Choice(KV_RULE_NAMES),
            help="Run under another KV rule than the bundle was trained for.",
        ),
        click.option(
            "--lazy-prompt/--eager-prompt", default=None,
            help="Run the prompt's deeper loops only when a token needs them.  [default: lazy where the bundle has a "
            "calibrated threshold]",
        ),
        click.option("--context", type=int, help="Tokens a conversation may hold."),
        click.option(
            "--context-full", type=click.Choice(["error", "truncate-left", "shift"]), default="error",
            show_default=True, help="Where it holds no more: drop the oldest before the reply, or while it goes on.",
        ),
        threads_option,
        click.option(
            "--weight-cache", type=click.Path(path_type=Path),
            help="Keep the weights packed for this machine in this folder, mapped from there.",
        ),
        click.option("--show-depth", is_flag=True, help="Colour each token by the depth it left at."),
    ]  # fmt: skip
    return _with(command, options)


def grammar_options(command: Command) -> Command:
    """What a reply must be, and what is told of it."""
    options = [
        click.option("--json-schema", metavar="FILE", help="The reply is JSON of this schema: a file, or its text."),
        click.option("--regex", help="The reply is what this regular expression matches."),
        click.option("--grammar", metavar="FILE", help="The reply is of this Lark grammar: a file."),
        click.option("--logprobs", type=int, help="With --json: log probabilities, and so many likeliest tokens'."),
    ]
    return _with(command, options)


def _with(command: Command, options: list[Any]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def read_sampling(given: dict[str, Any]) -> Sampling:
    """`Sampling` from the options' values.

    Raises:
        BadInputError: a value is out of range, or a file cannot be read.
    """
    from rrt_edge.runtime import Sampling

    names = {field.name for field in dataclasses.fields(Sampling)}
    fields = {name: value for name, value in given.items() if name in names}
    return Sampling(**{**fields, "logit_bias": _bias(given["logit_bias"]), "grammar": _grammar(given)})


def _bias(pairs: tuple[str, ...]) -> dict[int, float]:
    found = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise BadInputError(f"logit-bias {pair!r}: must be a token id and a number, like 42=-100") from None
    return found


def _grammar(given: dict[str, Any]) -> Grammar | None:
    from rrt_edge.runtime import Grammar

    asked = [name for name in ("json_schema", "regex", "grammar") if given.get(name) is not None]
    if len(asked) > 1:
        raise BadInputError("--json-schema, --regex and --grammar: give one of them")
    if not asked:
        return None
    value = given[asked[0]]
    if asked[0] == "regex":
        return Grammar.regex(value)
    if asked[0] == "json_schema":
        return Grammar.json_schema(value if value.lstrip().startswith("{") else _read(value))
    return Grammar.lark(_read(value))


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read ({error})") from error


threads_option = click.option(
    "--threads",
    type=int,
    help="How many threads onnxruntime computes with.  [default: one for each physical core that the process may use, "
    "within a container's quota]",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    envvar=VARIABLE,
    default="auto",
    show_default=True,
    help=f"What to run on (rrt-edge devices); auto: what was fastest in a trial, made once. Also in {VARIABLE}.",
)


def device_options(command: Command) -> Command:
    """`--device` and what conversations may take of its memory."""
    budget = click.option("--kv-budget", type=int, help="MiB that keys and values may take.  [default: what there is]")
    return device_option(budget(command))


def where_to_run(device: str, kv_rule: str | None, kv_budget: int | None = None) -> dict[str, Any]:
    """What `Model.load` is to be told; another KV rule than `exact` runs on the CPU, which `auto` then is."""
    return {"device": device_for(device, [kv_rule]), "kv_budget_bytes": None if kv_budget is None else kv_budget << 20}
