"""Show mkdocstrings the defaults of options: a field `option(1.0, "Passes over the data.")` as `1.0`."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, ExprCall, Extension


class OptionDefaults(Extension):
    """Runs before griffe makes the parameters of dataclasses from their fields."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        if isinstance(attr.value, ExprCall) and str(attr.value.function) == "option":
            attr.value = attr.value.arguments[0]
