"""Which KV rules go with a bundle, what keys and values take under each, and which one `auto` takes."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.kv_rules import KV_RULES, KVRule
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.system.machine import CGROUP, memory

LAST = KV_RULES["last"]
SHARE = 2  # one part in so many of the memory that is available may hold keys and values under `auto`
log = logging.getLogger(__name__)


def why_unfit(rule: KVRule, architecture: Architecture) -> str | None:
    """Return why a KV rule does not go with a model's shape, or None where it does."""
    if (rule.leaves_gaps or rule.one_slot) and architecture.windows:
        return "does not go with this model, whose attention slides over a window"
    if rule.one_slot and architecture.loops == 1:
        return "is for models of several loops, and this one has one loop"
    return None


def bytes_per_token(architecture: Architecture) -> dict[str, int]:
    """What the keys and values of a token take by the bits that a bundle is exported with (`--kv-bits`) and the rule.

    `last` is among them where it goes with the model; all other rules take the same.
    """
    shapes = {kind: replace(architecture, kv_bits=bits) for kind, bits in (("float32", 32), ("int8", 8))}
    sizes = {kind: shape.kv_bytes(1) for kind, shape in shapes.items()}
    if why_unfit(LAST, architecture) is None:
        sizes |= {f"last_{kind}": shape.kv_bytes(1, LAST) for kind, shape in shapes.items()}
    return sizes


def fitting_rule(manifest: Manifest, rules: Collection[KVRule], context: int, limit: int | None) -> KVRule:
    """The bundle's own KV rule where the keys and values of a whole context fit; else `last`, where that goes.

    They fit where they take no more than half of the memory that is available by now, nor than the limit.

    Args:
        rules: those that can be followed.
        context: tokens.
        limit: bytes that keys and values may take in all, if there is a limit.
    """
    own, architecture = manifest.rule, manifest.architecture
    room = memory(CGROUP)[1] // SHARE
    room = room if limit is None else min(room, limit)
    whole = architecture.kv_bytes(context, own)
    sizes = (
        f"a context of {context} tokens takes {whole / 1e6:.1f} MB under {own}, and {room / 1e6:.1f} MB are free for it"
    )
    if whole <= room or LAST not in rules or why_unfit(LAST, architecture) is not None:
        log.info("kv-rule %s: %s", own, sizes)
        return own
    log.warning("kv-rule last: %s; under last %.1f MB", sizes, architecture.kv_bytes(context, LAST) / 1e6)
    return LAST
