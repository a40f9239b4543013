"""What `inspect` shows of a source: what it is, what can be made of it, how large that would be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import missing, print_json, quiet_transformers
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import size, two_columns
from rrt_edge.conversion.facts import End, SourceFacts, read_facts
from rrt_edge.exporters.options import BLOCK_SIZE
from rrt_edge.model.sharing import check_sharing, ranks_in_words
from rrt_edge.runtime.errors import BadInputError


def inspect_source(path: Path, loops: int | None, rank: int | None, block_size: int | None, as_json: bool) -> None:
    """Print what a source is; without the packages that export needs, all but the sizes of bundles.

    Args:
        loops, rank, block_size: what the bundles would be exported with, or None for what export does by itself.

    Raises:
        BadInputError: it is no checkpoint, or damaged, or cannot be shared so.
    """
    facts, note = read_facts(path), ""
    sizes: dict[str, int] | None = None
    if facts.sharing is not None and (loops is not None or rank is not None):
        raise BadInputError(f"{path}: is recursive already; --loops and --rank are of what is not")
    if facts.looped is not None and loops not in (None, facts.looped):
        raise BadInputError(f"{path}: loops {facts.looped} times by itself; leave --loops out")
    loops, rank = (facts.looped or 1) if loops is None else loops, 0 if rank is None else rank
    if facts.problem is None and facts.sharing is None:
        check_sharing(facts.layers if facts.looped is None else None, loops, rank)
    if facts.problem is None:
        try:
            with importing():
                from rrt_edge.exporters.sizes import sizes_of

                quiet_transformers()
            sizes = sizes_of(path, loops, rank, block_size or BLOCK_SIZE)
        except ModuleNotFoundError as error:
            note = f"the sizes of bundles need {missing(str(error.name))}"
        except BadInputError as error:
            facts = dataclasses.replace(facts, problem=str(error), loops=())
    if as_json:
        return print_json({**dataclasses.asdict(facts), "sizes": sizes})
    how = f", {loops} loops" if loops > 1 else ""
    how += f", rank {rank}" if rank else ""
    how += f", blocks of {block_size}" if block_size else ""
    Console().print(facts_table(facts, sizes or {}, how))
    if note:
        click.echo(note, err=True)
    return None


def facts_table(facts: SourceFacts, sizes: Mapping[str, int], how: str) -> Table:
    """What the source is, whether it can be converted, and what bundles of it take that are made so."""
    stored = ", ".join(f"{kind} {count:,}" for kind, count in facts.stored.items())
    heads = f"{facts.attention_heads}, {facts.key_value_heads} of {facts.head_dim}"
    rows: list[tuple[str, Any]] = [
        ("kind", facts.kind),
        ("family", facts.family),
        ("architecture", facts.architecture),
        ("name", facts.name),
        ("layers", facts.layers),
        ("hidden size, feed-forward", f"{facts.hidden_size}, {facts.intermediate_size}"),
        ("heads: query, key/value", heads),
        ("vocabulary, context", f"{facts.vocabulary}, {facts.context_length} tokens"),
        ("parameters", f"{facts.parameters:,} ({stored})"),
        ("weights", size(facts.bytes)),
        ("tokenizer", facts.tokenizer or "none"),
        ("chat template", "yes" if facts.chat_template else "no"),
        ("ends of a reply", ", ".join(map(_end, facts.ends)) or "none named"),
    ]
    if facts.sharing is not None:
        sharing = facts.sharing
        rows += [
            ("loops x layers per block", f"{sharing.loops} x {sharing.layers_per_block}"),
            ("depths", ", ".join(map(str, range(1, sharing.loops + 1)))),
            ("LoRA rank", ranks_in_words(sharing.rank, sharing.component_ranks)),
            ("KV rule", sharing.kv_rule),
            ("exit gate", "trained" if sharing.gate_trained else "not trained"),
            ("made from", sharing.source or "not said"),
        ]
    if facts.problem is not None:
        what = "can be converted" if facts.sharing is None else "can be exported"
        rows.append((what, f"no: {facts.problem}"))
    elif facts.looped is not None:
        rows.append(("loops by itself", str(facts.looped)))
    elif facts.sharing is None:
        rows.append(("can be converted", f"yes; loops: {', '.join(map(str, facts.loops))} (1: unshared)"))
    rows += [(f"a bundle, --bits {bits}{how}", size(count)) for bits, count in sizes.items()]
    return two_columns(facts.source, [(name, value) for name, value in rows if value is not None])


def _end(end: End) -> str:
    return f"{end.id} {end.text}" if end.id is not None and end.text else str(end.text if end.id is None else end.id)
