"""Fields of a JSON file, checked and bounded as they are read; every complaint names the file and the field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import named, shown


@dataclass(frozen=True)
class Fields:
    """An object of a JSON file, by the names of its fields."""

    path: Path
    values: dict[str, Any]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value, unchecked."""
        return self.values.get(name, default)

    def fail(self, field: str, problem: str) -> BundleError:
        """The error that says what is wrong with a field."""
        return BundleError(f"{self.path}: {named(field)} {problem}")

    def table(self, name: str) -> Fields:
        """A field that is an object.

        Raises:
            BundleError: it is missing, or something else; so do the methods below.
        """
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "is missing or not an object")
        return Fields(self.path, value)

    def text(self, name: str) -> str:
        """A field that is a string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.fail(name, "is missing or not a string")
        return value

    def count(self, name: str, least: int, most: int) -> int:
        """A field that is a whole number between bounds."""
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.fail(name, f"is {shown(value)}; it must be a whole number from {least} to {most}")
        return value

    def number(self, name: str, most: float) -> float:
        """A field that is a number above 0."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.fail(name, f"is {shown(value)}; it must be a number above 0 and at most {most:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.fail(name, f"is {shown(value)}; it must be true or false")
        return value

    def counts(self, name: str, most: int) -> dict[str, int]:
        """A field that is an object of whole numbers from 0 on."""
        table = self.table(name)
        return {key: table.count(key, 0, most) for key in table}


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BundleError: it cannot be read, or is not valid JSON.
    """
    try:
        return parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}); export the bundle again") from error
