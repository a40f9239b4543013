"""Options written once: the fields of a frozen dataclass carry help, bounds and choices, from which checks, flags and
files of options are made.

    @dataclass(frozen=True)
    class Cutting:
        share: float = option(1.0, "Only the likeliest tokens that make up this share.", above=0, most=1)
        seed: int | None = option(None, "Makes sampling repeatable.", least=0)

        def __post_init__(self) -> None:
            check_options(self)

`Cutting(share=2)` is refused: "share 2: must be a number above 0 and at most 1". Types are those of the annotations:
`bool`, `int`, `float`, `str`, `Path`, a `Literal`, a tuple of such, or one of these or None.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rrt_edge.runtime.errors import BadInputError

T = TypeVar("T")
KEY = "option"  # of a field's metadata
EXACT = 1 << 53  # up to which a float is any whole number
LONGEST_SHOWN = 200  # characters of a wrong value that an error repeats


@dataclass(frozen=True)
class About:
    """What is said of an option; `option` explains the fields."""

    help: str
    least: float | None
    above: float | None
    most: float | None
    choices: tuple[Any, ...]
    check: Callable[[Any], bool] | None
    allowed: str
    parse: Callable[[Any], Any] | None
    unset: str
    flag: str
    metavar: str
    envvar: str
    section: str


def option(
    default: T,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple[Any, ...] = (),
    check: Callable[[Any], bool] | None = None,
    allowed: str = "",
    parse: Callable[[Any], Any] | None = None,
    unset: str = "",
    flag: str = "",
    metavar: str = "",
    envvar: str = "",
    section: str = "",
) -> T:
    """A field of a dataclass of options.

    Args:
        default: its default; a mapping is copied for each instance.
        help: one sentence for the command line.
        least, above, most: bounds of a number, or of each number of a tuple; `above` itself is not allowed.
        choices: what it may be, where the annotation is not a `Literal` that says so.
        check, allowed: for what bounds and choices cannot say: whether a value is allowed, and which are, in words
            that follow "must be".
        parse: makes the value of what a file or the command line says; raises ValueError where it cannot.
        unset: what the help says stands in the place of None.
        flag: its name on the command line where that is not the field's; of a switch, both names (`on/off`).
        metavar: what stands for its value in the help.
        envvar: the environment variable that may say it.
        section: heading of the help under which this option and those behind it stand.
    """
    about = About(help, least, above, most, choices, check, allowed, parse, unset, flag, metavar, envvar, section)
    metadata = {KEY: about}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """A field of a dataclass of options, its annotation understood."""

    name: str
    kind: type  # of one value
    optional: bool  # it may be None
    several: bool  # it is a tuple of such values
    choices: tuple[Any, ...]
    default: Any
    about: About

    @property
    def label(self) -> str:
        """Its name as people write it."""
        return self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """What its value may be, in words."""
        about = self.about
        if self.choices:
            return f"choose from {', '.join(map(str, self.choices))}"
        if about.allowed:
            return f"must be {about.allowed}"
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
        noun = words.get(self.kind, self.kind.__name__) + self._bounds()
        noun = f"a tuple, each {noun}" if self.several else noun
        return f"must be {noun}{', or none' if self.optional else ''}"

    def _bounds(self) -> str:
        least, above, most = self.about.least, self.about.above, self.about.most
        if least is not None:
            return f", {least} or more" if most is None else f" from {least} to {most}"
        if above is not None:
            return f" above {above}" if most is None else f" above {above} and at most {most}"
        return "" if most is None else f" of at most {most}"

    def check(self, value: Any) -> None:
        """
        Raises:
            BadInputError: the value is not allowed; names the option, the value and what is allowed.
        """
        if value is None and self.optional:
            return
        parts = value if self.several and isinstance(value, tuple) else (value,)
        wrong = [part for part in parts if not self._allows(part)]
        if wrong or isinstance(value, tuple) != self.several:
            message = f"{self.label} {shown(wrong[0] if wrong and self.choices else value)}: {self.allowed}"
            raise BadInputError(message, self.name)

    def _allows(self, value: Any) -> bool:
        about = self.about
        if self.choices:
            return value in self.choices
        if about.check is not None:
            return about.check(value)
        if self.kind not in (int, float):
            return isinstance(value, self.kind)
        number = plain_number(value, self.kind)
        return (
            number is not None
            and (about.least is None or number >= about.least)
            and (about.above is None or number > about.above)
            and (about.most is None or number <= about.most)
        )

    def plain(self, value: Any) -> Any:
        """An allowed value; numbers of other types (numpy's, fractions) as Python's own, with which all goes on."""
        if value is None or self.about.check is not None or self.choices or self.kind not in (int, float):
            return value
        return tuple(self._plain(part) for part in value) if isinstance(value, tuple) else self._plain(value)

    def _plain(self, value: Any) -> Any:
        exact = type(value) is float or (type(value) is int and (self.kind is int or abs(value) <= EXACT))
        return value if exact else plain_number(value, self.kind)

    def read(self, value: Any) -> Any:
        """A value of the option's type, of what YAML or the command line has; YAML reads 2e-4 as a text.

        Raises:
            BadInputError: it is of another type.
        """
        if value is None and self.optional:
            return None
        try:
            if self.about.parse is not None:
                return self.about.parse(value)
            if self.several:
                return tuple(self._read(part) for part in (value if isinstance(value, list | tuple) else (value,)))
            return self._read(value)
        except (TypeError, ValueError, OverflowError):
            raise BadInputError(f"{self.label}: {shown(value)} is not of the type {self.kind.__name__}") from None

    def _read(self, value: Any) -> Any:
        if self.choices:
            return {str(choice): choice for choice in self.choices}.get(str(value), value)
        if self.kind is not bool and isinstance(value, bool):
            raise TypeError
        if self.kind is float:
            return float(value)
        if self.kind is int and float(value) == int(value):
            return int(value)
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        if self.kind is not int and isinstance(value, self.kind):
            return value
        raise TypeError


def options_in(options: Any) -> dict[str, Option]:
    """The options of a dataclass by the name of their field; fields that `option` did not make are none."""
    return _options_in(options)


@cache
def _options_in(options: Any) -> dict[str, Option]:
    hints = get_type_hints(options)
    understood = {}
    for field in dataclasses.fields(options):
        if KEY in field.metadata:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            understood[field.name] = _understood(field.name, hints[field.name], default, field.metadata[KEY])
    return understood


def _understood(name: str, hint: Any, default: Any, about: About) -> Option:
    optional = False
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        optional, hint = len(kinds) < len(get_args(hint)), kinds[0]
    several = get_origin(hint) is tuple
    if several:
        hint = get_args(hint)[0]
    choices = about.choices
    if get_origin(hint) is Literal:
        choices = choices or get_args(hint)
        hint = type(choices[0])
    return Option(name, get_origin(hint) or hint, optional, several, choices, default, about)


def check_options(options: Any) -> None:
    """Check each option of a dataclass, as its `__post_init__` should; numbers of other types become Python's own.

    Raises:
        BadInputError: a value is not allowed; names the option, the value and what is allowed.
    """
    for name, understood in options_in(type(options)).items():
        value = getattr(options, name)
        understood.check(value)
        plain = understood.plain(value)
        if plain is not value:
            object.__setattr__(options, name, plain)


def plain_number(value: Any, kind: type) -> Any:
    """A number as Python's `int` or `float`, or None where it is no number of that kind, or not finite.

    Whole numbers may stand for others; those too large for a `float` are not finite. A bool is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return None
    number: int | float
    try:
        number = int(value) if isinstance(value, Integral) and kind is int else float(value)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return number if kind is int or math.isfinite(number) else None


def shown(value: Any) -> str:
    """A value as errors show it, on one line and not at any length."""
    try:
        nested = isinstance(value, list | tuple | dict | set)  # YAML's names make a little text stand for a lot
        text = " ".join((reprlib.repr(value) if nested else repr(value)).split())
    except Exception:  # a number of too many digits, or a type that cannot be shown
        return f"of the type {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def named(name: str) -> str:
    """A name from outside as errors show it: as it is, where it can be printed and is short."""
    return name if name.isprintable() and 0 < len(name) <= LONGEST_SHOWN else shown(name)


def read_options(options: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of options from a mapping of YAML's or the command line's types.

    Raises:
        BadInputError: there is no such option, or its value is of another type or not allowed.
    """
    return options(**read_fields(options, values))


def read_fields(options: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass of options that such a mapping names, of the right types; their
    bounds are the dataclass's to check.

    Raises:
        BadInputError: there is no such option, or its value is of another type.
    """
    known, fields = options_in(options), {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            labels = sorted(understood.label for understood in known.values())
            raise BadInputError(f"{key}: no such option; choose from {', '.join(labels)}")
        fields[name] = known[name].read(value)
    return fields
