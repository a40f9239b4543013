"""`--kv-rule`, and what keys and values take by rule and bits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from rrt_edge.cli import main
from rrt_edge.runtime.bundle.manifest import Manifest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], env={"COLUMNS": "400"})


def test_a_reply_says_which_rule_it_followed(bundle: Path) -> None:
    ask = ("generate", bundle, "--prompt-ids", "5,6,7", "--max-tokens", 2, "--json")
    for options, rule in (
        ((), "exact"),
        (("--kv-rule", "last"), "last"),
        (("--kv-rule", "auto"), "exact"),
        (("--kv-rule", "auto", "--kv-budget", 1, "--context", 512), "last"),
    ):
        done = run(*ask, *options)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["stats"]["kv_rule"] == rule
    done = run("train", bundle, bundle, "--kv-rule", "last")
    assert done.exit_code == 2 and "'last' is not one of 'exact', 'propagate', 'latest', 'skip'" in done.stderr


def test_the_bytes_of_a_token_are_shown_for_each_choice(bundle: Path, make_bundle: Callable[..., Path]) -> None:
    shape = Manifest.read(bundle).architecture
    row = 2 * shape.layers_per_block * shape.key_value_heads  # a key and a value
    sizes = {"float32": 3 * row * shape.head_dim * 4, "int8": 3 * row * (shape.head_dim + 4)}
    sizes |= {"last_float32": row * shape.head_dim * 4, "last_int8": row * (shape.head_dim + 4)}
    shown = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in sizes.items())
    for kv_bits in (32, 8):
        folder = make_bundle(kv_bits=kv_bits)
        assert json.loads(run("inspect", folder, "--json").stdout)["kv_bytes_per_token"] == sizes
        assert re.search(f"cache, bytes a token [^\\w]+{shown}\\b", run("inspect", folder).stdout)
    assert json.loads(run("doctor", bundle, "--json").stdout)["bundle"]["kv_bytes_per_token"] == sizes
    once = json.loads(run("inspect", make_bundle(loops=1), "--json").stdout)["kv_bytes_per_token"]
    assert list(once) == ["float32", "int8"]
