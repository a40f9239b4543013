"""Flags made from a dataclass of options."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from rrt_edge.cli.dataclass_options import from_options, options_of
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import check_options, option


def _pairs(pairs: Any) -> dict[int, float]:
    return {int(token): float(bias) for token, bias in (pair.split("=") for pair in pairs)}


@dataclass(frozen=True)
class Options:
    epochs: float = option(1.0, "Passes.", above=0)
    bits: Literal[4, 8] = option(4, "Of weights.")
    parts: tuple[Literal["block", "head"], ...] | None = option(None, "At 8 bits.", unset="those that matter")
    stop_ids: tuple[int, ...] = option((), "Ends.", flag="stop-id")
    lazy: bool | None = option(None, "Later.", flag="lazy/eager", unset="as the bundle says")
    packing: bool = option(False, "Rows.")
    cache: Path | None = option(None, "Where.")
    bias: Mapping[int, float] = option({}, "Of tokens.", parse=_pairs, metavar="ID=BIAS")
    device: str = option("auto", "What to run on.", envvar="RRT_EDGE_TEST_DEVICE")

    def __post_init__(self) -> None:
        check_options(self)


def run(*arguments: str, file: dict[str, Any] | None = None, **environment: str) -> Options:
    @click.command()
    @options_of(Options)
    def command(**flags: Any) -> Options:
        return from_options(Options, flags, file)

    result = CliRunner(env=environment).invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    assert isinstance(result.return_value, Options)
    return result.return_value


def test_flags_have_the_types_of_the_fields() -> None:
    assert run() == Options()
    assert run("--epochs", "2", "--bits", "8", "--no-packing", "--cache", "a") == Options(2.0, 8, cache=Path("a"))
    assert run("--parts", "block", "--parts", "head") == Options(parts=("block", "head"))
    assert run("--parts", "none") == Options(parts=())
    assert run("--stop-id", "3", "--stop-id", "4", "--eager") == Options(stop_ids=(3, 4), lazy=False)
    assert run("--bias", "3=-1", "--bias", "4=0.5") == Options(bias={3: -1.0, 4: 0.5})
    assert run(RRT_EDGE_TEST_DEVICE="cpu") == Options(device="cpu")


def test_flags_win_over_a_file() -> None:
    file = {"epochs": "3e0", "stop-ids": [7], "packing": True}
    assert run(file=file) == Options(epochs=3.0, stop_ids=(7,), packing=True)
    assert run("--no-packing", "--epochs", "4", file=file) == Options(epochs=4.0, stop_ids=(7,))


def test_wrong_flags_are_refused() -> None:
    for flag, value in (("--epochs", "many"), ("--bits", "5"), ("--stop-id", "a")):
        with pytest.raises(click.BadParameter):
            run(flag, value)
    with pytest.raises(BadInputError, match=r"epochs -1\.0: must be a number above 0"):
        run("--epochs", "-1")
    with pytest.raises(BadInputError, match=r"bias: .* is not of the type Mapping"):
        run("--bias", "x")


def test_the_help_says_what_the_fields_say() -> None:
    @click.command()
    @options_of(Options, without=("cache",))
    def command(**flags: Any) -> None:
        pass

    text = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    for line in (
        "--epochs FLOAT Passes. [default: 1.0]",
        "--bits [4|8] Of weights. [default: 4]",
        "--parts [block|head|none] At 8 bits. [default: those that matter]",
        "--lazy / --eager Later. [default: as the bundle says]",
        "--packing / --no-packing Rows. [default: off]",
        "--stop-id INTEGER Ends. --lazy",
        "--bias ID=BIAS Of tokens. --device",
    ):
        assert line in text
    assert "--cache" not in text


def test_the_help_says_where_the_bundle_may_say_another_default() -> None:
    @click.command()
    @options_of(Options, of_bundle={"epochs", "stop_ids"})
    def command(**flags: Any) -> None:
        pass

    text = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    assert "--epochs FLOAT Passes. [default: the bundle's own, else 1.0] --bits" in text
    assert "--stop-id INTEGER Ends. [default: the bundle's own] --lazy" in text


def test_commands_show_their_options_without_torch() -> None:
    code = "import sys; from rrt_edge.cli import main\n"
    code += "for name in ('convert', 'export', 'train'):\n"
    code += "    main([name, '--help'], standalone_mode=False)\n"
    code += "sys.exit(', '.join({'torch', 'onnx', 'transformers'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--init [average|stepwise|lower|random]" in done.stdout, done.stderr
