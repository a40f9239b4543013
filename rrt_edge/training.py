"""Train a recursive checkpoint back: uptraining with distillation, early exits, then the exit gate."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from rrt_edge.checkpoint import Checkpoint
from rrt_edge.conversion import is_recursive_checkpoint
from rrt_edge.data import Example, PadCollator, read_examples
from rrt_edge.losses import Divergence, ExitLoss, Recipe, StageTrainer
from rrt_edge.modeling import RecursiveForCausalLM
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.files import check_replaceable, new_folder
from rrt_edge.runtime.manifest import RULES, KVRule

Stage = Literal["uptrain", "early-exit", "gate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ATTENTION = None if torch.cuda.is_available() else "eager"  # on a CPU faster than sdpa at the lengths one trains there


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        stages: which of `uptrain`, `early-exit`, `gate` to run, in that order.
        epochs: passes over the data in each stage; may be a fraction.
        exit_epochs, gate_epochs: the same for these stages alone, where they differ.
        batch: examples a step on each device.
        lr: peak learning rate of uptraining; cosine decay after `warmup` steps.
        exit_lr: the same for the early-exit stage, which starts from a trained model.
        gate_lr: the same for the gate.
        kd_weight: weight of the forward KL from the teacher (section 3.1, appendix E).
        temperature: softens teacher and student in that KL.
        divergence: what stands in the place of the forward KL: `reverse-kl`, `jsd` or `tvd`.
        exit_loss: of the early-exit stage: `aggressive` (the last loop's loss, and each earlier loop's at
            `exit_weight`) or `weighted` (cross entropy of all loops, deeper ones more; appendix J).
        exit_weight: weight of each earlier loop's loss in the early-exit stage (0.1 in section 3.7).
        exit_kd_weight: weight, within that, of the forward KL from the last loop's detached logits.
        kv_rule: what tokens that leave early are to the depths they skip (`rrt_edge.kv_rules`). Under another rule than
            `exact` the early-exit and gate stages draw an exit depth for each token the model should say.
        max_length: tokens an example is cut to.
        save_steps: steps between the checkpoints a stopped run goes on from.
    """

    stages: tuple[Stage, ...] = STAGES
    epochs: float = 1.0
    exit_epochs: float | None = None
    gate_epochs: float | None = None
    batch: int = 32
    lr: float = 2e-4
    exit_lr: float | None = None
    gate_lr: float = 1e-2
    warmup: int = 40
    kd_weight: float = 1.0
    temperature: float = 1.0
    divergence: Divergence = "forward-kl"
    exit_loss: ExitLoss = "aggressive"
    exit_weight: float = 0.1
    exit_kd_weight: float = 1.0
    kv_rule: KVRule = "exact"
    max_length: int = 1024
    seed: int = 0
    save_steps: int = 200

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise BadInputError(f"stages {', '.join(unknown) or '(none)'}: choose from {', '.join(STAGES)}")
        for name in ("epochs", "batch", "lr", "gate_lr", "temperature", "max_length", "save_steps"):
            if getattr(self, name) <= 0:
                raise BadInputError(f"{name.replace('_', '-')} {getattr(self, name)} must be above 0")
        if self.kv_rule not in RULES:
            raise BadInputError(f"kv-rule {self.kv_rule!r}: choose from {', '.join(RULES)}")
        for name, choices in (("divergence", get_args(Divergence)), ("exit_loss", get_args(ExitLoss))):
            if getattr(self, name) not in choices:
                wrong = f"{name.replace('_', '-')} {getattr(self, name)!r}"
                raise BadInputError(f"{wrong}: choose from {', '.join(choices)}")
        for name in ("kd_weight", "exit_weight", "exit_kd_weight", "warmup"):
            if getattr(self, name) < 0:
                raise BadInputError(f"{name.replace('_', '-')} {getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class TrainReport:
    out: str
    stages: tuple[str, ...]
    examples: int
    final_loss: dict[str, float]
    seconds: float


def train(
    checkpoint: Path | str,
    out: Path | str,
    *,
    data: Path | str,
    teacher: Path | str | None = None,
    options: TrainOptions | None = None,
) -> TrainReport:
    """Train a recursive checkpoint through its stages and write the result to `out`.

    Started again with the same `out`, it goes on where it was interrupted: from the last stage finished, or from the
    last checkpoint of the one under way, both kept in `OUT.work` until the end.

    Args:
        checkpoint: a recursive checkpoint folder.
        out: the folder to write.
        data: JSON lines of `{"messages": [...]}` (loss on the assistant's turns) or `{"text": "..."}`.
        teacher: a checkpoint whose vocabulary is the same, usually the source; without one there is no distillation.

    Raises:
        BadInputError: a folder, the data or an option is wrong.
    """
    started = time.perf_counter()
    options, out = options or TrainOptions(), Path(out)
    check_replaceable(out, "recursive checkpoint", is_recursive_checkpoint)
    source = Checkpoint(checkpoint)
    if not source.is_recursive:
        raise BadInputError(f"{checkpoint}: not a recursive checkpoint; make one with rrt-edge convert")
    if source.config.loops == 1 and set(options.stages) - {"uptrain"}:
        raise BadInputError(f"{checkpoint}: has one loop, so no early exit to train; use --stages uptrain")
    teacher_model = None if teacher is None else _load_teacher(Path(teacher), source)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    set_seed(options.seed)
    examples = read_examples(Path(data), tokenizer, options.max_length)
    collator = PadCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)

    work = out.with_name(f"{out.name}.work")
    folder, losses = source.folder, dict[str, float]()
    for stage in [stage for stage in STAGES if stage in options.stages]:
        finished = work / stage / "finished"
        if not finished.is_dir():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)
            losses[stage] = _run_stage(stage, model, teacher_model, examples, collator, work / stage, options)
        folder = finished
    _publish(folder, source, out)
    shutil.rmtree(work)
    seconds = round(time.perf_counter() - started, 1)
    return TrainReport(str(out), tuple(options.stages), len(examples), losses, seconds)


def _load_teacher(folder: Path, student: Checkpoint) -> PreTrainedModel:
    source = Checkpoint(folder)
    vocabulary = student.config.text_config.vocab_size
    if source.config.get_text_config().vocab_size != vocabulary:
        raise BadInputError(f"{folder}: the teacher's vocabulary is not the student's {vocabulary} tokens")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)


def _run_stage(
    stage: Stage,
    model: RecursiveForCausalLM,
    teacher: PreTrainedModel | None,
    examples: list[Example],
    collator: PadCollator,
    work: Path,
    options: TrainOptions,
) -> float:
    if stage == "gate" and model.exit_gate is not None:
        model.requires_grad_(False)
        model.exit_gate.requires_grad_(True)
    if stage != "uptrain":
        model.config.kv_rule = options.kv_rule
    lr = {"uptrain": options.lr, "early-exit": options.exit_lr or options.lr, "gate": options.gate_lr}[stage]
    epochs = {"uptrain": options.epochs, "early-exit": options.exit_epochs, "gate": options.gate_epochs}[stage]
    trainer = StageTrainer(
        stage=stage,
        teacher=teacher if stage != "gate" else None,
        recipe=Recipe(
            kd_weight=options.kd_weight,
            temperature=options.temperature,
            divergence=options.divergence,
            exit_loss=options.exit_loss,
            exit_weight=options.exit_weight,
            exit_kd_weight=options.exit_kd_weight,
        ),
        model=model,
        train_dataset=examples,
        data_collator=collator,
        args=TrainingArguments(
            output_dir=str(work),
            num_train_epochs=epochs or options.epochs,
            per_device_train_batch_size=options.batch,
            learning_rate=lr,
            lr_scheduler_type="cosine",
            warmup_steps=options.warmup,
            adam_beta2=0.95,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            train_sampling_strategy="group_by_length",
            logging_steps=20,
            save_steps=options.save_steps,
            save_total_limit=1,
            report_to="none",
            seed=options.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
    )
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    if stage == "gate":
        model.config.gate_trained = True
    partial = work / "finished.partial"
    model.save_pretrained(partial)
    partial.replace(work / "finished")
    return round(float(result.training_loss), 4)


def _publish(finished: Path, source: Checkpoint, out: Path) -> None:
    """Write the trained weights in the checkpoint's own type, with its tokenizer, as `out`."""
    model = AutoModelForCausalLM.from_pretrained(finished, dtype=source.dtype)
    with new_folder(out, "recursive checkpoint", is_recursive_checkpoint) as folder:
        model.save_pretrained(folder)
        source.copy_companions(folder)
