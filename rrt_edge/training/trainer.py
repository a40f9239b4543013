"""transformers' Trainer for the stages: their losses, learning rates by part, evaluation of every depth."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rrt_edge.conversion.folder import SINGLE
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.runtime.system.files import explained
from rrt_edge.training.checkpoints import SAVING, publish
from rrt_edge.training.distributed import (
    is_main,
    load_model,
    load_optimizer,
    model_state,
    processes,
    save_optimizer,
    share_of_mean,
    wait,
)
from rrt_edge.training.evaluation import depth_scores
from rrt_edge.training.losses import draw_exits, exit_loss, gate_loss, weighted_exit_loss
from rrt_edge.training.options import Stage, TrainOptions
from rrt_edge.training.replicas import Replicas, divided
from rrt_edge.training.rounding import Rounding
from rrt_edge.training.teacher import Answer, CachedTeacher, Logits, OnlineTeacher, predicting, text_of

BY_GATE = 0.5  # share of tokens that leave as the gate says, where it does
THRESHOLDS = (0.5, 1.0)  # of the gate in training: one of these for each batch


class StageTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of one stage, computed at the labelled positions only."""

    def __init__(
        self, *, stage: Stage, teacher: OnlineTeacher | CachedTeacher | None, options: TrainOptions, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.is_distributed_loading_by_transformers = processes() > 1  # sharded before: nobody else wraps the model
        self.stage, self.teacher, self.options = stage, teacher, options
        self._replicas: Replicas | None = None
        self.rounding: Rounding | None = None
        if options.bits is not None:
            self.rounding = Rounding(self.model, options.bits, options.block_size, options.eight_bit)
        self.model_accepts_loss_kwargs = False  # our losses are means: let the Trainer divide when it accumulates
        if isinstance(teacher, OnlineTeacher):
            teacher.model.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        predicts = predicting(inputs["labels"])  # [B, S]
        exits = self._exits(model, predicts)
        loss, outputs = self._mean_loss(model, inputs, predicts, exits)
        loss = share_of_mean(loss, int(predicts.sum()))
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward, where asked for with rounded weights, from the first batch of a step to its last."""
        if self.rounding is None:
            return self._learn(model, inputs, num_items_in_batch)
        self.rounding.round()
        loss = self._learn(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.rounding.restore()
        return loss

    def _config(self, model: Any) -> RecursiveConfig:
        """Of the model inside what the Trainer wraps around it."""
        config: RecursiveConfig = self.accelerator.unwrap_model(model).config
        return config

    def _learn(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None) -> Tensor:
        """Forward and backward: in one, or with a part of the batch for each replica."""
        if self.options.cpu_replicas == 1:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        if self._replicas is None:
            self._replicas = Replicas(self.accelerator.unwrap_model(model), self.options.cpu_replicas)
        model.train()
        parts = divided(self._prepare_inputs(inputs), self.options.cpu_replicas)
        count = sum(int(predicting(part["labels"]).sum()) for part in parts) * self.current_gradient_accumulation_steps
        return self._replicas.learn([self._share(model, part, count) for part in parts])

    def _share(self, model: Any, part: dict[str, Tensor], count: int) -> Callable[[nn.Module], Tensor]:
        """The loss of a part, which a copy of the model will compute: as much of a mean over `count` as it is."""
        predicts = predicting(part["labels"])
        exits = self._exits(model, predicts)  # drawn in this thread

        def loss(replica: nn.Module) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(self.args.bf16)):
                return self._mean_loss(replica, part, predicts, exits)[0] * (predicts.sum() / count)

        return loss

    def _mean_loss(
        self, model: Any, inputs: dict[str, Tensor], predicts: Tensor, exits: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """The stage's mean loss over the labelled positions, and what the model gave."""
        targets = inputs["labels"][:, 1:][predicts[:, :-1]]  # [N]
        loops, depth = self._config(model).loops, None
        if self.stage == "early-exit" and self.options.exit_loss == "stochastic":
            depth = self._drawn.randint(1, loops)
        outputs = model(
            **text_of(inputs),
            logits_mask=predicts,
            output_depths=self.stage != "uptrain" and depth is None,
            output_hidden_states=self._matches_hidden,
            depth=depth,
            **exits,
        )
        return self._loss(outputs, targets, inputs, predicts), outputs

    @property
    def _drawn(self) -> random.Random:
        """The random numbers of this step, the same in every process."""
        return random.Random(f"{self.options.seed}/{self.state.global_step}")

    def _exits(self, model: Any, predicts: Tensor) -> dict[str, Any]:
        """Return the depths at which a batch's tokens leave, under a rule by which that matters."""
        config = self._config(model)
        if self.stage == "uptrain" or not config.rule.exits_matter:
            return {}
        if not self._by_gate:
            return {"exit_depths": draw_exits(predicts, config.loops)}
        exits = draw_exits(predicts, config.loops, BY_GATE)
        return {"exit_depths": exits, "exit_threshold": self._drawn.uniform(*THRESHOLDS)}

    @property
    def _matches_hidden(self) -> bool:
        """Whether hidden states are compared with the teacher's."""
        return self.stage != "gate" and self.options.hidden_weight > 0

    @property
    def _by_gate(self) -> bool:
        return self.stage == "early-exit" and self.options.gate_learns_early

    def _loss(self, outputs: Any, targets: Tensor, inputs: dict[str, Tensor], predicts: Tensor) -> Tensor:
        options = self.options
        if self.stage == "gate":
            return gate_loss(outputs.gate_logits, outputs.depth_logits)
        says = self._teachers_answer(inputs, predicts)
        if self.stage == "early-exit" and options.exit_loss == "weighted":
            loss = weighted_exit_loss(outputs.depth_logits, targets)
        else:
            loss = self._taught(outputs.logits, targets, says, options.kd_weight)
            if outputs.depth_logits is not None:
                loss = loss + options.exit_weight * self._early(outputs.depth_logits, targets, says)
        if self._by_gate and outputs.depth_logits is not None:
            loss = loss + gate_loss(outputs.gate_logits, outputs.depth_logits)
        if self._matches_hidden:
            said = says()
            assert isinstance(said, Logits)
            kept = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            config = self._config(self.model)
            loss = loss + options.hidden_weight * said.distance(outputs.hidden_states, config, kept)
        return loss

    def _teachers_answer(self, inputs: dict[str, Tensor], predicts: Tensor) -> Callable[[], Answer | None]:
        """What the teacher says of a batch, for whoever asks: it runs for the first."""

        @cache
        def answer() -> Answer | None:
            return None if self.teacher is None else self.teacher.answer(inputs, predicts, self._matches_hidden)

        return answer

    def _early(self, depth_logits: tuple[Tensor, ...], targets: Tensor, says: Callable[[], Answer | None]) -> Tensor:
        """The earlier loops' losses, distilled from the last loop or from the teacher."""
        weight = self.options.exit_kd_weight
        if not self.options.exit_teacher:
            return exit_loss(depth_logits, targets, weight)
        return torch.stack([self._taught(logits, targets, says, weight) for logits in depth_logits[:-1]]).sum()

    def _taught(self, logits: Tensor, targets: Tensor, says: Callable[[], Answer | None], weight: float) -> Tensor:
        """Cross entropy of logits [N, V], and the divergence from the teacher's where there is one."""
        loss = F.cross_entropy(logits.float(), targets)
        said = says() if weight else None
        if said is None:
            return loss
        return loss + weight * said.divergence(logits, self.options.divergence, self.options.temperature)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        state = model_state(self.model) if processes() > 1 else None
        if is_main():
            self.model.save_pretrained(folder, state_dict=state)
            torch.save(self.args, folder / "training_args.bin")
        wait()

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are saved: in a folder in which nobody looks for them, until they are whole."""
        return str(Path(self.args.output_dir) / SAVING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        work = Path(self.args.output_dir)
        made = work / SAVING / f"checkpoint-{self.state.global_step}"
        with explained(work):
            if is_main():
                shutil.rmtree(work / SAVING, ignore_errors=True)
            wait()
            try:
                super()._save_checkpoint(model, trial)
                wait()
                if is_main():
                    publish(made, work)
            finally:
                if is_main():
                    shutil.rmtree(work / SAVING, ignore_errors=True)
            wait()

    @property
    def all_steps(self) -> int:
        """The steps that this stage has."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        each_epoch: int = max(1, math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps))
        return math.ceil(float(self.args.num_train_epochs) * each_epoch)

    def take(self, checkpoint: Path) -> None:
        """Be as a checkpoint was, without a step more."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(model or self.model, Path(resume_from_checkpoint) / SINGLE)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_optimizer(self.model, self._plain_optimizer, self.lr_scheduler.state_dict(), Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            schedule = load_optimizer(self.model, self._plain_optimizer, Path(checkpoint))
            self.lr_scheduler.load_state_dict(schedule)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with learning rates of their own for adapters and gate; only matrices decay."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            options, base = self.options, self.args.learning_rate
            lora = options.lora_lr if options.lora_lr and self.stage == "uptrain" else base
            groups: dict[tuple[float, float], list[Tensor]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    lr = options.gate_lr if "exit_gate" in name else lora if ".lora_" in name else base
                    decay = options.weight_decay if parameter.dim() > 1 else 0.0
                    groups.setdefault((lr, decay), []).append(parameter)
            described = [{"params": some, "lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()]
            self.optimizer = optimizer = torch.optim.AdamW(described, lr=base, betas=(0.9, self.args.adam_beta2))
        return optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Perplexity and agreement at every depth, of the rounded model where it is trained so."""
        training = self.model.training
        self.model.eval()
        batches = (self._prepare_inputs(batch) for batch in self.get_eval_dataloader(eval_dataset))
        with nullcontext() if self.rounding is None else self.rounding.applied():
            scores = depth_scores(self.model, islice(batches, self.options.eval_batches))
        self.model.train(training)
        metrics: dict[str, float] = {}
        for score in scores:
            metrics[f"{metric_key_prefix}_perplexity_{score.depth}"] = round(score.perplexity, 4)
            metrics[f"{metric_key_prefix}_agreement_{score.depth}"] = round(score.agreement, 4)
        self.log(metrics)
        return metrics
