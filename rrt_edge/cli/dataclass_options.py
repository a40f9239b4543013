"""Flags made from a dataclass of options (`rrt_edge.runtime.system.options`): one for each field that says its help."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from rrt_edge.cli.common import Command
from rrt_edge.cli.help import section as heading
from rrt_edge.runtime.system.options import Option, options_in, read_fields

T = TypeVar("T")
NONE = "none"  # stands for no parts at all, where giving none means the default


def options_of(
    options: type, *, section: str = "", without: Collection[str] = (), of_bundle: Collection[str] = ()
) -> Callable[[Command], Command]:
    """A decorator that gives a command a flag for each option of a dataclass, but those that it does without.

    A flag that is not given is None, or an empty tuple where it may be repeated: the dataclass knows the defaults, but
    for the fields `of_bundle`, of which the bundle may say others. `section`: where the help shows them, but for those
    that begin one of their own.
    """

    def decorate(command: Command) -> Command:
        for understood in reversed(options_in(options).values()):
            if understood.name not in without:
                command = _flag(understood, understood.name in of_bundle)(command)
            if understood.about.section:
                command = heading(understood.about.section)(command)
        return heading(section)(command) if section else command

    return decorate


def from_options(options: type[T], values: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> T:
    """A dataclass of options from the values of a command's flags, over those that a file of options says.

    Raises:
        BadInputError: the file has no such option, or a value is of another type or not allowed.
    """
    return options(**given_fields(options, values, file))


def given_fields(options: Any, values: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a dataclass of options that flags or a file say.

    Raises:
        BadInputError: the file has no such option, or a value is of another type.
    """
    known = options_in(options)
    flags = {name: value for name, value in values.items() if name in known and value not in (None, ())}
    for name, value in flags.items():
        if _may_be_none(known[name]):
            flags[name] = tuple(part for part in value if part != NONE)
    return read_fields(options, {**(file or {}), **flags})


def _may_be_none(understood: Option) -> bool:
    return understood.optional and understood.several


def _flag(understood: Option, of_bundle: bool) -> Callable[[Command], Command]:
    about, name = understood.about, understood.about.flag or understood.label
    settings: dict[str, Any] = {"default": None, "help": about.help + _default(understood, of_bundle)}
    if about.envvar:
        settings["envvar"] = about.envvar
    if understood.kind is bool:
        on, _, off = name.partition("/")
        return click.option(f"--{on}/--{off or f'no-{on}'}", understood.name, **settings)
    if about.metavar or about.parse is not None:
        settings["metavar"] = about.metavar or "VALUE"
    settings["multiple"] = issubclass(understood.kind, Mapping) or (understood.several and about.parse is None)
    return click.option(f"--{name}", understood.name, type=_type(understood), **settings)


def _type(understood: Option) -> Any:
    if understood.about.parse is not None:
        return str
    if understood.choices:
        return click.Choice([*map(str, understood.choices), *([NONE] if _may_be_none(understood) else [])])
    return click.Path(path_type=Path) if understood.kind is Path else understood.kind


def _default(understood: Option, of_bundle: bool) -> str:
    """What the help says of the default, if there is anything to say."""
    default: Any = understood.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))
    elif default is None or default == {}:
        default = understood.about.unset
    if of_bundle:
        default = f"the bundle's own{'' if default == '' else f', else {default}'}"
    return "" if default == "" else f"  [default: {default}]"
