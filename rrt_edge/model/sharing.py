"""How layers may be shared, and with which adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rrt_edge.runtime.errors import BadInputError

Order = Literal["consecutive", "interleaved"]
Rank = int | float  # a float below 1 is a share of full rank
LOOPS = 2  # where nobody says
LOOPED = {"ouro": "total_ut_steps", "nanbeige": "num_loops"}  # looped models of others: the field of their loops
LOOPED_DEFAULTS = {"total_ut_steps": 4, "num_loops": 2}
COMPONENTS = {"q": "attention", "o": "attention", "k": "kv", "v": "kv", "gate": "ffn", "up": "ffn", "down": "ffn"}


def check_sharing(
    layers: int | None, loops: int, rank: Rank, component_ranks: Mapping[str, Rank] | None = None
) -> None:
    """`layers`: of the source; None where its config.json leaves them to transformers' default.

    Raises:
        BadInputError: `loops` does not divide the layers, or a rank is impossible.
    """
    if loops < 1 and layers is None:
        raise BadInputError(f"loops {loops}: must be 1 or more")
    if layers is not None and (loops < 1 or layers % loops):
        choices = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        raise BadInputError(f"loops {loops} does not divide the {layers} layers; choose one of {choices}")
    known = set(COMPONENTS.values())
    for component, value in {"": rank, **(component_ranks or {})}.items():
        if component and component not in known:
            raise BadInputError(f"component_ranks names {component!r}; choose from {', '.join(sorted(known))}")
        label = f"{component} rank".strip()
        if value < 0:
            raise BadInputError(f"{label} {value} is negative; 0 shares the block without LoRA")
        if value > 1 and value != int(value):
            raise BadInputError(f"{label} {value} is neither a whole number nor a share of full rank below 1")


def ranks_in_words(rank: Rank, component_ranks: Mapping[str, Rank]) -> str:
    """The rank of all adapters, and those that differ, as people read them."""
    differing = [f"{name} {own}" for name, own in component_ranks.items()]
    return ", ".join(differing if len(differing) == len(set(COMPONENTS.values())) else [f"{rank}", *differing])


def own_loops(fields: Mapping[str, Any]) -> int | None:
    """The loops of a looped model of others, by the fields of its config.json; None: it is none."""
    field = LOOPED.get(str(fields.get("model_type")))
    return None if field is None else int(fields.get(field, LOOPED_DEFAULTS[field]))


def loops_of(asked: int | None, fields: Mapping[str, Any]) -> int:
    """The loops that a source is converted to.

    Raises:
        BadInputError: others than those that it has already were asked for.
    """
    own = own_loops(fields)
    if own is not None and asked not in (None, own):
        raise BadInputError(f"loops {asked}: this {fields['model_type']} model loops {own} times; leave loops out")
    return own or (LOOPS if asked is None else asked)
