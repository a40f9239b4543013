"""What `train` refuses, said before torch and transformers are imported."""

from __future__ import annotations

from pathlib import Path

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
    if streamed(str(data), options) and not options.max_steps:
        raise BadInputError(f"{data}: the end of a stream is not known; say how far with --max-steps")
    for text in (data, eval_data):
        if text is not None and not str(text).startswith("hub:"):
            check_kind(Path(text))


def streamed(data: str, options: TrainOptions) -> bool:
    """Whether the data is read while training."""
    return options.stream or data.startswith("hub:")
