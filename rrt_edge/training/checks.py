"""What `train` refuses, said before torch and transformers are imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrt_edge.conversion.folder import check_folder, check_recursive, is_recursive_checkpoint
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import check_kind
from rrt_edge.runtime.system.files import check_replaceable
from rrt_edge.training.options import TrainOptions


def check_training(
    checkpoint: Path | str,
    out: Path,
    data: Path | str,
    teacher: Path | str | None,
    eval_data: Path | str | None,
    options: TrainOptions,
) -> None:
    """
    Raises:
        BadInputError: a folder or the data is wrong, or an option does not go with them.
    """
    check_replaceable(out, "recursive checkpoint", is_recursive_checkpoint)
    fields = check_recursive(checkpoint)
    if fields.get("loops") == 1 and set(options.stages) - {"uptrain"}:
        raise BadInputError(f"{checkpoint}: has one loop, so no early exit to train; use --stages uptrain")
    if fields.get("gate_kind") == "none" and set(options.stages) - {"uptrain"}:
        raise BadInputError(
            f"{checkpoint}: is read after its last loop alone and has no exit gate; use --stages uptrain"
        )
    if teacher is not None:
        check_folder(teacher)
    if options.hidden_weight:
        _check_hidden(checkpoint, fields, teacher)
    if streamed(str(data), options) and not options.max_steps:
        raise BadInputError(f"{data}: the end of a stream is not known; say how far with --max-steps")
    for text in (data, eval_data):
        if text is not None and not str(text).startswith("hub:"):
            check_kind(Path(text))


def _check_hidden(checkpoint: Path | str, fields: dict[str, Any], teacher: Path | str | None) -> None:
    """
    Raises:
        BadInputError: there is no teacher whose hidden states the checkpoint's can be compared with.
    """
    if teacher is None:
        raise BadInputError("hidden-weight needs a teacher; name the checkpoint's source with --teacher")
    (ours, size), (theirs, wide) = (_layers_run(of) for of in (fields, check_folder(teacher)))
    if (ours, size) != (theirs, wide):
        raise BadInputError(
            f"{teacher}: runs {theirs} layers of {wide} where {checkpoint} runs {ours} of {size}; hidden-weight needs "
            "the checkpoint's source as teacher"
        )


def _layers_run(fields: dict[str, Any]) -> tuple[Any, Any]:
    """How many layers a model runs, and how wide its hidden state is."""
    text = fields.get("text_config") or fields
    return text.get("num_hidden_layers"), text.get("hidden_size")


def streamed(data: str, options: TrainOptions) -> bool:
    """Whether the data is read while training."""
    return options.stream or data.startswith("hub:")
