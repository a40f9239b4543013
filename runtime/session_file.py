"""Conversations on disk: tokens, keys and values of a session in one safetensors file that names its bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.kv_rule_names import RUN_RULE_NAMES, RunRuleName
from rrt_edge.runtime.bundle.kv_rules import KV_RULES, KVRule
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import BadInputError, BundleError, one_line
from rrt_edge.runtime.system.files import new_file
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import shown

FORMAT, VERSION = "rrt-edge session", "2"
ABOUT = {"bundle", "kv_rule", "long_context", "prompt_end"}  # what a file says beside its arrays
HEADER = 1 << 20  # bytes that names and shapes may take


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
        rows: keys and values by slot (each depth's own, or one for all) and KV group.
        waiting: hidden states [n, H] of the rows that wait after each depth but the last.
    """

    ids: list[int]
    rule: RunRuleName
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
    for depth, positions in enumerate(conversation.positions, 1):
        arrays[f"positions.{depth}"] = np.array(positions, np.int64)
    for slot, groups in enumerate(conversation.rows, 1):
        for group, rows in enumerate(groups):
            arrays[f"first.{slot}.{group}"] = np.array([rows.first], np.int64)
            for name, plane in zip(architecture.kv_planes, rows.planes, strict=True):
                arrays[f"{name}.{slot}.{group}"] = np.ascontiguousarray(plane)
    for depth, waiting in enumerate(conversation.waiting, 1):
        arrays[f"waiting.{depth}"] = waiting
    about = {
        "bundle": manifest.fingerprint,
        "kv_rule": conversation.rule,
        "long_context": _long_context(architecture, context),
        "prompt_end": min(conversation.prompt_end, len(conversation.ids)),
    }
    metadata = {"format": FORMAT, "version": VERSION, "about": json.dumps(about)}
    with new_file(path) as partial:
        save_file(arrays, partial, {**metadata, "sha256": _digest(metadata["about"], arrays)})


def read_conversation(path: Path, manifest: Manifest, context: int) -> Conversation:
    """Read what `write_conversation` wrote, for a bundle whose conversations hold `context` tokens.

    Raises:
        BadInputError: the file cannot be read, is damaged, or was made with another context.
        BundleError: it is a conversation with another bundle.
    """
    try:
        if path.stat().st_size > (largest := _largest(manifest.architecture, context)):
            raise BadInputError(f"{path}: larger than the {largest} bytes that a conversation can take here")
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BadInputError(f"{path}: is no conversation that Session.save wrote")
            if metadata.get("version") != VERSION:
                raise BadInputError(
                    f"{path}: version {shown(metadata.get('version'))} is not {VERSION}, which this one reads"
                )
            about = parse_json(metadata["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            if about["bundle"] != manifest.fingerprint:
                raise BundleError(f"{path}: is a conversation with another bundle ({shown(about['bundle'][:12])}...)")
            if about["long_context"] != _long_context(manifest.architecture, context):
                raise BadInputError(f"{path}: was made with another context; load the model with that one")
            if about["kv_rule"] not in RUN_RULE_NAMES:
                raise ValueError(f"kv_rule {shown(about['kv_rule'])}")
            conversation = _conversation(about, arrays, manifest.architecture)
            if metadata.get("sha256") != _digest(metadata["about"], arrays):
                raise ValueError("its SHA-256 is not the one it was saved with")
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, or not a conversation ({one_line(error)})") from error
    if len(conversation.ids) > context:
        tokens = len(conversation.ids)
        raise BadInputError(f"{path}: the conversation has {tokens} tokens, the context holds {context}")
    return conversation


def _conversation(about: dict[str, Any], arrays: dict[str, NDArray[Any]], architecture: Architecture) -> Conversation:
    """The conversation of a file's arrays; KeyError and ValueError where they do not fit each other and the bundle."""
    if about.keys() != ABOUT:
        raise ValueError(f"{shown(sorted(about.keys() ^ ABOUT))} is missing or belongs to no conversation")
    rule, depths, arrays = KV_RULES[about["kv_rule"]], range(1, architecture.loops + 1), dict(arrays)
    ids = _numbers(arrays, "ids", architecture.vocabulary)
    positions = [_numbers(arrays, f"positions.{depth}", len(ids)) for depth in depths]
    for depth, depth_positions in enumerate(positions, 1):
        _check_positions(rule, f"positions.{depth}", depth_positions, positions[max(0, depth - 2)], len(ids))
    groups = range(len(architecture.kv_groups))
    slots = range(1, rule.slots(architecture.loops) + 1)
    rows = [[_held_rows(arrays, architecture, slot, group, positions[slot - 1]) for group in groups] for slot in slots]
    waiting: list[NDArray[np.float32]] = []
    for depth in depths[:-1]:
        count = len(positions[depth - 1]) - len(positions[depth]) if rule.waits else 0
        waiting.append(_plane(arrays, f"waiting.{depth}", (count, architecture.hidden_size), np.float32))
    prompt_end = about["prompt_end"]
    if type(prompt_end) is not int or not 0 <= prompt_end <= len(ids):
        raise ValueError(f"prompt_end {shown(prompt_end)}")
    if arrays:
        raise ValueError(f"{min(arrays)}: belongs to no conversation")
    return Conversation(ids, about["kv_rule"], prompt_end, positions, rows, waiting)


def _check_positions(rule: KVRule, name: str, positions: list[int], shallower: list[int], length: int) -> None:
    """Raise ValueError where a depth's positions cannot be, by those of the depth before it."""
    if name == "positions.1" or rule.copied_depth is not None:
        fit = positions == list(range(length))
    elif rule.waits:
        fit = positions == shallower[: len(positions)]
    else:
        fit = positions == sorted(set(positions)) and set(positions) <= set(shallower)
    if not fit:
        raise ValueError(f"{name}: not what the KV rule {rule} has at that depth")


def _numbers(arrays: dict[str, NDArray[Any]], name: str, below: int) -> list[int]:
    """An array of numbers from 0 to below a bound."""
    array = arrays.pop(name)
    if array.ndim != 1 or array.dtype != np.int64 or (array.size and not 0 <= array.min() <= array.max() < below):
        raise ValueError(f"{name}: must be numbers from 0 to {below - 1}")
    numbers: list[int] = array.tolist()
    return numbers


def _plane(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
    """An array of a shape and type; floats are finite."""
    array = arrays.pop(name)
    if array.shape != shape or array.dtype != kind or not np.isfinite(array).all():
        raise ValueError(f"{name}: must be {shape} finite numbers of type {np.dtype(kind).name}")
    return array


def _held_rows(
    arrays: dict[str, NDArray[Any]], architecture: Architecture, depth: int, group: int, positions: list[int]
) -> HeldRows:
    (first,) = _numbers(arrays, f"first.{depth}.{group}", len(positions) + 1)
    window = architecture.window(depth, group)
    if first and (window is None or len(positions) - first < window - 1):
        raise ValueError(f"first.{depth}.{group}: more rows were dropped than the layers' window lets be")
    shape = (len(architecture.kv_groups[group]), architecture.key_value_heads, len(positions) - first)
    planes = [
        _plane(arrays, f"{name}.{depth}.{group}", (*shape, width), kind)
        for name, (kind, width) in architecture.kv_planes.items()
    ]
    return HeldRows(first, planes)


def _digest(about: str, arrays: dict[str, NDArray[Any]]) -> str:
    """Hexadecimal SHA-256 of all that a file says."""
    digest = hashlib.sha256(json.dumps([FORMAT, VERSION, about]).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _largest(architecture: Architecture, context: int) -> int:
    """Bytes that a conversation of `context` tokens takes at most."""
    rows = context * (architecture.loops * (architecture.hidden_size * 4 + 8) + 8)
    return architecture.kv_bytes(context) + rows + HEADER


def _long_context(architecture: Architecture, context: int) -> bool:
    """Whether the frequencies of a long context rotate (LongRoPE)."""
    return architecture.short_context is not None and context > architecture.short_context
