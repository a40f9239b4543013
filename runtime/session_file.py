"""Conversations on disk: tokens, keys and values of a session in one safetensors file that names its bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES, KVRuleName
from rrt_edge.runtime.bundle.manifest import Architecture, Manifest
from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.system.files import new_file

FORMAT, VERSION = "rrt-edge session", "1"


@dataclass(frozen=True)
class HeldRows:
    """Rows of a KV group at a depth: how many were dropped before them, and their planes [layers, KV, n, width]."""

    first: int
    planes: Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Conversation:
    """The tokens, keys, values and waiting rows of a session, on the host.

    Attributes:
        ids: its tokens.
        rule: the KV rule it follows.
        prompt_end: tokens of the last prompt.
        positions: of the rows that have run each depth.
        rows: keys and values by depth and KV group.
        waiting: hidden states [n, H] of the rows that wait after each depth but the last.
    """

    ids: list[int]
    rule: KVRuleName
    prompt_end: int
    positions: list[list[int]]
    rows: list[list[HeldRows]]
    waiting: list[NDArray[np.float32]]


def write_conversation(path: Path, conversation: Conversation, manifest: Manifest, context: int) -> None:
    """Write a conversation with a bundle, beside the old file first.

    Raises:
        BadInputError: the file cannot be written.
        RRTEdgeError: the disk is full.
    """
    architecture = manifest.architecture
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(conversation.ids, np.int64)}
    for depth, groups in enumerate(conversation.rows, 1):
        arrays[f"positions.{depth}"] = np.array(conversation.positions[depth - 1], np.int64)
        for group, rows in enumerate(groups):
            arrays[f"first.{depth}.{group}"] = np.array([rows.first], np.int64)
            for name, plane in zip(architecture.kv_planes, rows.planes, strict=True):
                arrays[f"{name}.{depth}.{group}"] = np.ascontiguousarray(plane)
    for depth, waiting in enumerate(conversation.waiting, 1):
        arrays[f"waiting.{depth}"] = waiting
    about = {
        "bundle": manifest.fingerprint,
        "kv_rule": conversation.rule,
        "long_context": _long_context(architecture, context),
        "prompt_end": conversation.prompt_end,
    }
    with new_file(path) as partial:
        save_file(arrays, partial, {"format": FORMAT, "version": VERSION, "about": json.dumps(about)})


def read_conversation(path: Path, manifest: Manifest, context: int) -> Conversation:
    """Read what `write_conversation` wrote, for a bundle whose conversations hold `context` tokens.

    Raises:
        BadInputError: the file cannot be read, is damaged, or was made with another context.
        BundleError: it is a conversation with another bundle.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BadInputError(f"{path}: is no conversation that Session.save wrote")
            if metadata.get("version") != VERSION:
                raise BadInputError(f"{path}: version {metadata.get('version')} is not {VERSION}, which this one reads")
            about = json.loads(metadata["about"])
            if about["bundle"] != manifest.fingerprint:
                raise BundleError(f"{path}: is a conversation with another bundle ({about['bundle'][:12]}...)")
            if about["long_context"] != _long_context(manifest.architecture, context):
                raise BadInputError(f"{path}: was made with another context; load the model with that one")
            if about["kv_rule"] not in KV_RULE_NAMES:
                raise ValueError(f"kv_rule {about['kv_rule']!r}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            conversation = _conversation(about, arrays, manifest.architecture)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, or not a conversation ({error})") from error
    if len(conversation.ids) > context:
        tokens = len(conversation.ids)
        raise BadInputError(f"{path}: the conversation has {tokens} tokens, the context holds {context}")
    return conversation


def _conversation(about: dict[str, Any], arrays: dict[str, NDArray[Any]], architecture: Architecture) -> Conversation:
    """The conversation of a file's arrays; KeyError and ValueError where they do not fit."""
    ids = [int(token) for token in arrays["ids"]]
    positions = [arrays[f"positions.{depth}"].tolist() for depth in range(1, architecture.loops + 1)]
    if positions[0] != list(range(len(ids))):
        raise ValueError("positions.1")
    rows: list[list[HeldRows]] = []
    for depth, depth_positions in enumerate(positions, 1):
        groups = [
            _held_rows(arrays, architecture, depth, group, depth_positions)
            for group in range(len(architecture.kv_groups))
        ]
        rows.append(groups)
    waiting = [arrays[f"waiting.{depth}"] for depth in range(1, architecture.loops)]
    for depth, states in enumerate(waiting, 1):
        if states.shape[1:] != (architecture.hidden_size,) or states.dtype != np.float32:
            raise ValueError(f"waiting.{depth}")
    return Conversation(ids, about["kv_rule"], int(about["prompt_end"]), positions, rows, waiting)


def _held_rows(
    arrays: dict[str, NDArray[Any]], architecture: Architecture, depth: int, group: int, positions: list[int]
) -> HeldRows:
    first = int(arrays[f"first.{depth}.{group}"][0])
    planes = [arrays[f"{name}.{depth}.{group}"] for name in architecture.kv_planes]
    shape = (len(architecture.kv_groups[group]), architecture.key_value_heads, len(positions) - first)
    for (name, (kind, width)), plane in zip(architecture.kv_planes.items(), planes, strict=True):
        if plane.shape != (*shape, width) or plane.dtype != kind:
            raise ValueError(f"{name}.{depth}.{group}")
    return HeldRows(first, planes)


def _long_context(architecture: Architecture, context: int) -> bool:
    """Whether the frequencies of a long context rotate (LongRoPE)."""
    return architecture.short_context is not None and context > architecture.short_context
