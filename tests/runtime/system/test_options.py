"""Options of a dataclass: what its fields say is what is checked, read and told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import check_options, option, options_in, read_options

Colour = Literal["red", "green"]


def _small(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) < 3


@dataclass(frozen=True)
class Options:
    share: float = option(1.0, "A share.", above=0, most=1)
    warmth: float = option(0.0, "Of sampling.", least=0)
    seed: int | None = option(None, "Repeats.", least=0)
    bits: Literal[4, 8] = option(4, "Of weights.")
    colour: Colour = option("red", "Of text.")
    layers: int = option(1, "How many.", choices=(1, 2, 4))
    packed: bool = option(False, "Whether.")
    parts: tuple[Colour, ...] | None = option(None, "Which.")
    ids: tuple[int, ...] = option((), "Of tokens.", least=0)
    folder: Path | None = option(None, "Where.")
    bias: Mapping[int, float] = option({}, "Of tokens.", check=_small, allowed="of two tokens at most")
    words: tuple[str, ...] = option(("a",), "Which.", parse=lambda text: tuple(text.split(",")))
    unnamed: object = None

    def __post_init__(self) -> None:
        check_options(self)


def refusal(**values: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        Options(**values)
    return str(caught.value)


def test_a_value_that_is_not_allowed_is_named_with_what_is() -> None:
    for values, message in (
        ({"share": 2}, "share 2: must be a number above 0 and at most 1"),
        ({"share": 0}, "share 0: must be a number above 0 and at most 1"),
        ({"share": True}, "share True: must be a number above 0 and at most 1"),
        ({"warmth": math.inf}, "warmth inf: must be a number, 0 or more"),
        ({"warmth": math.nan}, "warmth nan: must be a number, 0 or more"),
        ({"seed": -1}, "seed -1: must be a whole number, 0 or more, or none"),
        ({"seed": 1.0}, "seed 1.0: must be a whole number, 0 or more, or none"),
        ({"bits": 5}, "bits 5: choose from 4, 8"),
        ({"colour": "blue"}, "colour 'blue': choose from red, green"),
        ({"colour": None}, "colour None: choose from red, green"),
        ({"layers": 3}, "layers 3: choose from 1, 2, 4"),
        ({"packed": 1}, "packed 1: must be true or false"),
        ({"parts": ("red", "blue")}, "parts 'blue': choose from red, green"),
        ({"ids": (1, -2)}, "ids (1, -2): must be a tuple, each a whole number, 0 or more"),
        ({"ids": [1]}, "ids [1]: must be a tuple, each a whole number, 0 or more"),
        ({"folder": 3}, "folder 3: must be a path, or none"),
        ({"bias": {1: 1, 2: 2, 3: 3}}, "bias {1: 1, 2: 2, 3: 3}: must be of two tokens at most"),
    ):
        assert refusal(**values) == message


def test_what_is_allowed_is_kept_as_it_is() -> None:
    options = Options(share=1, seed=np.int64(3), parts=(), ids=(0, 1), folder=Path("a"), bits=8, unnamed="what")
    assert (options.share, options.seed, options.parts, options.ids, options.bits) == (1, 3, (), (0, 1), 8)
    assert Options().bias == {} and Options().bias is not Options().bias


def test_the_types_of_yaml_and_of_texts_become_those_of_the_fields() -> None:
    text = "share: 5e-1\nseed: 7\nbits: 8\npacked: true\nparts: [green]\nids: 3\nfolder: a\nwords: b,c\nlayers: '2'\n"
    expected = Options(
        share=0.5, seed=7, bits=8, packed=True, parts=("green",), ids=(3,), folder=Path("a"), words=("b", "c"), layers=2
    )
    assert read_options(Options, yaml.safe_load(text)) == expected
    assert read_options(Options, {"seed": None, "warmth": "0.5"}) == Options(warmth=0.5)
    for values, message in (
        ({"seeds": 1}, "seeds: no such option; choose from bias, bits, colour, folder, ids, "),
        ({"unnamed": 1}, "unnamed: no such option; "),
        ({"seed": 2.5}, "seed: 2.5 is not of the type int"),
        ({"seed": True}, "seed: True is not of the type int"),
        ({"seed": "1e400"}, "seed: '1e400' is not of the type int"),
        ({"share": "much"}, "share: 'much' is not of the type float"),
        ({"share": None}, "share: None is not of the type float"),
        ({"packed": "yes"}, "packed: 'yes' is not of the type bool"),
        ({"bits": 5}, "bits 5: choose from 4, 8"),
    ):
        with pytest.raises(BadInputError) as caught:
            read_options(Options, values)
        assert str(caught.value).startswith(message)


def test_fields_without_a_description_are_no_options() -> None:
    assert list(options_in(Options)) == [name for name in Options.__dataclass_fields__ if name != "unnamed"]
