"""Conversations on disk: tokens, keys and values of a session in one safetensors file that names its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rrt_edge.runtime.bundle.manifest import RULES
from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.running.hidden import on_host
from rrt_edge.runtime.system.files import new_file

if TYPE_CHECKING:
    from rrt_edge.runtime.model import Model
    from rrt_edge.runtime.session import Session

FORMAT, VERSION = "rrt-edge session", "1"


def save_session(session: Session, path: Path) -> None:
    """`Session.save`."""
    model, state = session.model, session.fork().decoder.state  # whole tokens, where a reply is under way
    architecture = model.manifest.architecture
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(session.ids, np.int64)}
    for depth in range(1, architecture.loops + 1):
        arrays[f"positions.{depth}"] = np.array(state.cache.positions[depth - 1], np.int64)
        for group in range(len(architecture.kv_groups)):
            first, planes = state.cache.rows(depth, group)
            arrays[f"first.{depth}.{group}"] = np.array([first], np.int64)
            for name, plane in zip(architecture.kv_planes, planes, strict=True):
                arrays[f"{name}.{depth}.{group}"] = np.ascontiguousarray(plane)
        if depth < architecture.loops:
            arrays[f"waiting.{depth}"] = on_host(state.waiting[depth - 1].all())
    about = {
        "bundle": model.manifest.fingerprint,
        "kv_rule": state.rule,
        "long_context": _long_context(model),
        "prompt_end": session.decoder.prompt_end,
    }
    with new_file(path) as partial:
        save_file(arrays, partial, {"format": FORMAT, "version": VERSION, "about": json.dumps(about)})


def load_session(model: Model, path: Path) -> Session:
    """`Model.load_session`."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BadInputError(f"{path}: is no conversation that Session.save wrote")
            if metadata.get("version") != VERSION:
                raise BadInputError(f"{path}: version {metadata.get('version')} is not {VERSION}, which this one reads")
            about = json.loads(metadata["about"])
            if about["bundle"] != model.manifest.fingerprint:
                raise BundleError(f"{path}: is a conversation with another bundle ({about['bundle'][:12]}...)")
            if about["long_context"] != _long_context(model):
                raise BadInputError(f"{path}: was made with another context; load the model with that one")
            if about["kv_rule"] not in RULES:
                raise ValueError(f"kv_rule {about['kv_rule']!r}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            return _restored(model, about, arrays)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{path}: damaged, or not a conversation ({error})") from error


def _restored(model: Model, about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Session:
    """The session of a file's arrays; KeyError and ValueError where they do not fit."""
    session = model.session(kv_rule=about["kv_rule"])
    decoder, architecture = session.decoder, model.manifest.architecture
    ids = [int(token) for token in arrays["ids"]]
    if len(ids) > model.context:
        raise BadInputError(f"the conversation has {len(ids)} tokens, the context holds {model.context}")
    positions = [arrays[f"positions.{depth}"].tolist() for depth in range(1, architecture.loops + 1)]
    if positions[0] != list(range(len(ids))):
        raise ValueError("positions.1")
    for depth, held in enumerate(positions, 1):
        for group, layers in enumerate(architecture.kv_groups):
            first = int(arrays[f"first.{depth}.{group}"][0])
            planes = [arrays[f"{name}.{depth}.{group}"] for name in architecture.kv_planes]
            shape = (len(layers), architecture.key_value_heads, len(held) - first)
            for (name, (kind, width)), plane in zip(architecture.kv_planes.items(), planes, strict=True):
                if plane.shape != (*shape, width) or plane.dtype != kind:
                    raise ValueError(f"{name}.{depth}.{group}")
            decoder.state.cache.restore(depth, group, first, planes, held)
        if depth < architecture.loops:
            waiting = arrays[f"waiting.{depth}"]
            if waiting.shape[1:] != (architecture.hidden_size,) or waiting.dtype != np.float32:
                raise ValueError(f"waiting.{depth}")
            decoder.state.waiting[depth - 1].add(decoder.runner.hidden(waiting))
    decoder.prompt_end = int(about["prompt_end"])
    session.hold(decoder, ids)
    return session


def _long_context(model: Model) -> bool:
    """Whether the frequencies of a long context rotate (LongRoPE)."""
    short = model.manifest.architecture.short_context
    return short is not None and model.context > short
