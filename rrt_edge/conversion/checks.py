"""What `convert` refuses beside wrong options, said before torch and transformers are imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrt_edge.conversion.folder import RECURSIVE, check_source, is_recursive_checkpoint
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.model.sharing import check_sharing, loops_of, own_loops
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import check_kind
from rrt_edge.runtime.system.files import check_replaceable


def check_conversion(source: Path | str, out: Path | None, options: ConvertOptions) -> int:
    """The loops that the source is converted to; `out` may be None where the checkpoint is for a moment only.

    Raises:
        BadInputError: the source or `out` is wrong, or the options do not go with the source.
    """
    if out is not None:
        check_replaceable(out, "recursive checkpoint", is_recursive_checkpoint)
    return check_sharing_of(source, check_source(source), options)


def check_sharing_of(source: Path | str, fields: dict[str, Any], options: ConvertOptions) -> int:
    """The loops that a source is converted to.

    Raises:
        BadInputError: the options do not go with the fields of the source's config.
    """
    if fields["model_type"] == RECURSIVE:
        raise BadInputError(f"{source}: is recursive already; convert a plain checkpoint")
    layers, loops = (fields.get("text_config") or fields).get("num_hidden_layers"), loops_of(options.loops, fields)
    if own_loops(fields) is not None:
        _check_looped(source, options)
    if options.data is not None:
        check_kind(options.data)
        if not (options.rank or options.parameters or any(options.component_ranks.values())):
            raise BadInputError("rank 0: with data it is the adapters that are fitted; give a rank")
    sharable = layers if isinstance(layers, int) and own_loops(fields) is None else None
    check_sharing(sharable, loops, options.rank, options.component_ranks)
    return loops


def _check_looped(source: Path | str, options: ConvertOptions) -> None:
    """
    Raises:
        BadInputError: an option says how layers are shared, but the source shares them already.
    """
    if options.data is not None:
        raise BadInputError(f"{source}: is looped already; there is nothing for data to make up for: leave it out")
    if options.parameters is not None:
        raise BadInputError(
            f"parameters {options.parameters}: {source} is looped already, so sharing loses nothing that adapters "
            "could bring back; leave out parameters, or give a rank"
        )
    usual = ConvertOptions()
    for name in ("init", "order", "lora_init"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value not in (getattr(usual, name), "zero"):  # adapters of a looped model start from nothing
            raise BadInputError(
                f"{flag} {value}: {source} is looped already, so its weights are kept; leave out {flag}"
            )
