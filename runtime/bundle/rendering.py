"""The child process that renders chat templates: a template of a stranger may loop for ever, or fill the memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from rrt_edge.runtime.errors import BadInputError, in_words, one_line

MOST_OUTPUT = 8 << 20  # characters
MOST_REASON = 1000  # characters of what a template says of a conversation that it refuses
MOST_TEMPLATES = 16  # kept compiled


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with what transformers' templates may use."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], optimized=False,
            finalize=_as_it_is,
        )  # fmt: skip
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["namespace"] = _Namespace
        self.globals["dict"] = _Dict()


@pass_context
def _as_it_is(context: Any, value: Any) -> Any:
    """Depends on the context, for the compiler computes what does not, without any limit that would be ours."""
    return value


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says; it renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's `namespace` without underscored names, by which a template could make it pose as another object."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace must not hold {name!r}: it begins with an underscore")
        super().__setitem__(name, value)


class _Dict:
    """What templates may do with `dict`: its methods would change what the sandbox keeps as it is."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _in_words(error: Exception) -> str:
    return one_line(error, MOST_REASON) if isinstance(error, TemplateError) else in_words(error)


def _rendered(template: Template, values: Mapping[str, Any]) -> str:
    pieces, count = [], 0
    try:
        for piece in template.generate(values):
            pieces.append(piece)
            count += len(piece)
            if count > MOST_OUTPUT:
                raise BadInputError(f"the chat template makes more than {MOST_OUTPUT:,} characters of it")
    except (BadInputError, MemoryError):
        raise
    except Exception as error:  # whatever the template's own expressions raise
        raise BadInputError(f"the chat template refuses this conversation: {_in_words(error)}") from error
    return "".join(pieces)


class Renderer:
    """Answers questions: `{"source": ...}` compiles a template, with `values` it renders it; where it refuses them, and
    there is `otherwise`, with those of them that stand there.
    """

    def __init__(self) -> None:
        self._environment = Environment()
        self._templates: dict[str, Template] = {}

    def __call__(self, question: Mapping[str, Any]) -> str:
        template = self._compiled(question["source"])
        if "values" not in question:
            return ""
        try:
            return _rendered(template, question["values"])
        except BadInputError:
            if "otherwise" not in question:
                raise
        return _rendered(template, {**question["values"], **question["otherwise"]})

    def _compiled(self, source: str) -> Template:
        template = self._templates.get(source)
        if template is None:
            try:
                template = self._environment.from_string(source)
            except MemoryError:
                raise
            except Exception as error:  # a stray `break` or deep nesting fails in Python's compiler, not in Jinja
                raise BadInputError(f"the chat template is not valid: {_in_words(error)}") from error
            if len(self._templates) == MOST_TEMPLATES:
                self._templates.clear()
            self._templates[source] = template
        return template


def begin(_: None) -> Renderer:
    return Renderer()
