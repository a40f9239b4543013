"""How training says how far it is: through `Progress`, in the place of the Trainer's own bars and printed logs."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from rrt_edge.runtime.system.progress import Progress
from rrt_edge.training.checkpoints import say
from rrt_edge.training.options import Stage

LOGGED = 20  # steps between losses


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Says the steps of a stage with their loss, and what an evaluation found."""

    def __init__(self, stage: Stage, progress: Progress | None) -> None:
        self._stage, self._progress, self._loss = stage, progress, ""

    def attach(self, trainer: Trainer) -> None:
        """Take the place of what the Trainer prints by itself."""
        for theirs in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(theirs)
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._progress is not None and state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps, f"steps of {self._stage}{self._loss}")

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = f": loss {logs['loss']:.4f}"
        depths = [key.rpartition("_")[2] for key in logs if key.startswith("eval_perplexity_")]
        if depths:
            scores = (
                f"depth {depth} has perplexity {logs[f'eval_perplexity_{depth}']:.4g} and agrees on "
                f"{logs[f'eval_agreement_{depth}']:.1%}"
                for depth in depths
            )
            say(f"{self._stage}, step {state.global_step}: {'; '.join(scores)}")
