"""The options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rrt_edge.cli.common import Command
from rrt_edge.cli.dataclass_options import from_options, given_fields, options_of
from rrt_edge.cli.help import section
from rrt_edge.runtime.decoding.default_sampling import FIELDS
from rrt_edge.runtime.decoding.exit_policy import POINTS, in_words
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.load_options import LoadOptions
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import options_in

if TYPE_CHECKING:
    from rrt_edge.runtime import Grammar, Model

POLICY_HELP = (
    f"How deep each token thinks: {in_words()} ({', '.join(POINTS)}).  [default: the bundle's calibrated threshold, "
    "else full]"
)
exit_policy_option = click.option("--exit-policy", metavar="POLICY", help=POLICY_HELP)


def reply_options(command: Command) -> Command:
    """The options of `generate` and `chat` that say how a reply comes about, beside those that choose its tokens."""
    options = [
        section("Depth and context"),
        exit_policy_option,
        click.option(
            "--lazy-prompt/--eager-prompt", default=None,
            help="Run the prompt's deeper loops only when a token needs them.  [default: lazy where the bundle has a "
            "calibrated threshold]",
        ),
        click.option(
            "--context-full", type=click.Choice(["error", "truncate-left", "shift"]), default="error",
            show_default=True, help="Where it holds no more: drop the oldest before the reply, or while it goes on.",
        ),
        click.option(
            "--chat-template-kwargs", metavar="JSON",
            help="Variables of the chat template, as an object: '{\"enable_thinking\": false}'.",
        ),
        click.option("--show-depth", is_flag=True, help="Colour each token by the depth it left at."),
    ]  # fmt: skip
    return _with(command, options)


def sampling_options(*, without: set[str]) -> Callable[[Command], Command]:
    """How tokens are chosen; what is not given is as the bundle's makers chose."""
    return options_of(Sampling, section="How tokens are chosen", without=without, of_bundle=FIELDS)


def load_options(*, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """How a bundle is loaded."""
    return options_of(LoadOptions, section="How it runs here", without=without)


def grammar_options(command: Command) -> Command:
    """What a reply must be."""
    options = [
        section("What the reply must be"),
        click.option("--json-schema", metavar="FILE", help="The reply is JSON of this schema: a file, or its text."),
        click.option("--regex", help="The reply is what this regular expression matches."),
        click.option("--grammar", metavar="FILE", help="The reply is of this Lark grammar: a file."),
    ]
    return _with(command, options)


def _with(command: Command, options: list[Any]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def read_sampling(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Sampling` that the options' values say, for `Model.sampling`.

    Raises:
        BadInputError: a value is out of range, or a file cannot be read.
    """
    fields = given_fields(Sampling, values)
    for name, value in fields.items():
        options_in(Sampling)[name].check(value)
    return {**fields, "grammar": _grammar(values)}


def read_variables(values: dict[str, Any]) -> dict[str, Any]:
    """The further variables of the chat template.

    Raises:
        BadInputError: they are no JSON object.
    """
    text = values["chat_template_kwargs"]
    try:
        variables = {} if text is None else parse_json(text)
    except ValueError as error:
        raise BadInputError(f"--chat-template-kwargs: not valid JSON ({error})") from error
    if not isinstance(variables, dict):
        raise BadInputError("--chat-template-kwargs: must be a JSON object")
    return variables


def load_model(bundle: Path, values: dict[str, Any]) -> Model:
    """Load a bundle as the options say.

    Raises:
        BundleError, DeviceError, BadInputError: as `Model.load`.
    """
    from rrt_edge.runtime import Model

    return Model.load(bundle, **vars(from_options(LoadOptions, values)))


def _grammar(values: dict[str, Any]) -> Grammar | None:
    from rrt_edge.runtime import Grammar

    names = [name for name in ("json_schema", "regex", "grammar") if values.get(name) is not None]
    if len(names) > 1:
        raise BadInputError("--json-schema, --regex and --grammar: give one of them")
    if not names:
        return None
    value = values[names[0]]
    if names[0] == "regex":
        return Grammar.regex(value)
    if names[0] == "json_schema":
        return Grammar.json_schema(value if value.lstrip().startswith("{") else _read(value))
    return Grammar.lark(_read(value))


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read ({error})") from error
