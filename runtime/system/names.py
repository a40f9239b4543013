"""Names of arguments and fields: errors that say which one was meant, and what an object has of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from rrt_edge.runtime.errors import BadInputError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        BadInputError: a given name is not known; says which is like it, or all there are.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            begun = [known for known in names if len(name) > 2 and known.startswith(name)]
            close = begun if len(begun) == 1 else get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
            raise BadInputError(f"{name}: {what} takes no such argument; {remedy}", name)


def says_meant(function: Callable[P, R]) -> Callable[P, R]:
    """A function that answers a misspelt keyword as `check_names` does."""
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.name not in ("self", "cls")]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            check_names(function.__qualname__.removesuffix(".__init__"), kwargs, known)
            raise

    return call


def init_says_meant(made: C) -> C:
    """`says_meant` for what a class is made with."""
    made.__init__ = says_meant(made.__init__)  # type: ignore[misc]
    return made


def changed_fields(made: Any) -> str:
    """A dataclass as it would be written: the fields that are not as by default."""
    values = []
    for field in dataclasses.fields(made):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        value = getattr(made, field.name)
        if value != default:
            values.append(f"{field.name}={value!r}")
    return f"{type(made).__name__}({', '.join(values)})"
