"""`TrainOptions`: how to train, from Python, flags or a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES, KVRuleName
from rrt_edge.runtime.errors import BadInputError

Stage = Literal["uptrain", "early-exit", "gate"]
Divergence = Literal["forward-kl", "reverse-kl", "jsd", "tvd"]
ExitLoss = Literal["aggressive", "weighted", "stochastic"]
Exits = Literal["random", "gate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ABOVE_0 = (
    "epochs", "batch", "accumulate", "lr", "lora_lr", "exit_lr", "gate_lr", "temperature", "max_length", "save_steps",
    "eval_batches",
)  # fmt: skip
NOT_NEGATIVE = (
    "kd_weight", "exit_weight", "exit_kd_weight", "warmup", "weight_decay", "max_steps", "eval_steps", "teacher_top_k",
)  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        stages: which of `uptrain`, `early-exit`, `gate` to run, in that order.
        epochs: passes over the data in each stage; may be a fraction.
        exit_epochs, gate_epochs: the same for these stages alone, where they differ.
        max_steps: steps of each stage, in the place of epochs; 0: as many as the epochs have. A stream needs it.
        batch: examples a step on each device; packed rows where `packing`.
        accumulate: batches whose gradients make one step.
        packing: put examples behind each other in rows of `max_length` tokens, where they do not see each other.
        stream: read and tokenize the data while training, in its own order, instead of before.
        lr: peak learning rate of the block and what is around it; cosine decay after `warmup` steps.
        lora_lr: the same for the adapters, where it differs.
        exit_lr: the same for both in the early-exit stage, which starts from a trained model.
        gate_lr: the same for the gate.
        weight_decay: AdamW's, of matrices.
        bf16: mixed precision; where None, on GPUs that have it.
        gradient_checkpointing: run the block again in the backward pass instead of keeping what it computed.
        kd_weight: weight of the divergence from the teacher (section 3.1, appendix E).
        temperature: softens teacher and student in it.
        divergence: which one: `forward-kl`, or for comparison `reverse-kl`, `jsd` or `tvd`.
        teacher_top_k: keep this many of the teacher's logits at each position on disk, once, instead of running it
            beside the student; 0 runs it.
        exit_loss: of the early-exit stage: `aggressive` (the last loop's loss, and each earlier loop's at
            `exit_weight`), `weighted` (cross entropy of all loops, deeper ones more; appendix J) or `stochastic` (each
            batch runs a number of loops drawn at random and has the last loop's loss there, which costs less).
        exit_weight: weight of each earlier loop's loss in the early-exit stage. Section 3.7 has 0.1; with equal weights
            the first loop lacks a quarter as much to the last, which loses half a point (docs/miniature.md).
        exit_kd_weight: weight, within that, of the forward KL from the last loop's detached logits.
        exit_teacher: take that KL from the teacher instead.
        kv_rule: what tokens that leave early are to the depths they skip (`rrt_edge.model.kv_rules`). Under another
            rule than `exact` the early-exit and gate stages draw an exit depth for each token the model should say.
        exits: how, in the early-exit stage: `gate`, half of them as the gate says, which learns beside the rest, at a
            threshold drawn for each batch; `random`, all of them at random (docs/miniature.md compares them).
        max_length: tokens an example is cut to.
        save_steps: steps between the checkpoints a stopped run goes on from.
        eval_steps: steps between evaluations, where there is text for them; 0: at the end of each stage only.
        eval_batches: batches of that text an evaluation reads at most.

    Raises:
        BadInputError: a value is out of range; names the option.
    """

    stages: tuple[Stage, ...] = STAGES
    epochs: float = 1.0
    exit_epochs: float | None = None
    gate_epochs: float | None = None
    max_steps: int = 0
    batch: int = 32
    accumulate: int = 1
    packing: bool = False
    stream: bool = False
    lr: float = 2e-4
    lora_lr: float | None = None
    exit_lr: float | None = None
    gate_lr: float = 1e-2
    warmup: int = 40
    weight_decay: float = 0.0
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    kd_weight: float = 1.0
    temperature: float = 1.0
    divergence: Divergence = "forward-kl"
    teacher_top_k: int = 0
    exit_loss: ExitLoss = "aggressive"
    exit_weight: float = 1.0
    exit_kd_weight: float = 1.0
    exit_teacher: bool = False
    kv_rule: KVRuleName = "exact"
    exits: Exits = "gate"
    max_length: int = 1024
    seed: int = 0
    save_steps: int = 200
    eval_steps: int = 0
    eval_batches: int = 50

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise BadInputError(f"stages {', '.join(unknown) or '(none)'}: choose from {', '.join(STAGES)}, or all")
        for name in ABOVE_0:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise BadInputError(f"{_flag(name)} {getattr(self, name)} must be above 0")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise BadInputError(f"{_flag(name)} {getattr(self, name)} must not be negative")
        choices = (
            ("kv_rule", KV_RULE_NAMES),
            ("divergence", get_args(Divergence)),
            ("exit_loss", get_args(ExitLoss)),
            ("exits", get_args(Exits)),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise BadInputError(f"{_flag(name)} {getattr(self, name)!r}: choose from {', '.join(known)}")
        if self.stream and not self.max_steps:
            raise BadInputError("stream: the end of a stream is not known; say how far with max-steps")
        if self.teacher_top_k and (self.stream or self.divergence != "forward-kl"):
            raise BadInputError("teacher-top-k goes with forward-kl, and with data that is not streamed")

    def lr_of(self, stage: Stage) -> float:
        """The learning rate of the block in a stage."""
        return {"uptrain": self.lr, "early-exit": self.exit_lr or self.lr, "gate": self.gate_lr}[stage]

    @property
    def gate_learns_early(self) -> bool:
        """Whether the early-exit stage takes exits from the gate, which then learns in it too."""
        return self.exits == "gate" and self.kv_rule != "exact"

    def epochs_of(self, stage: Stage) -> float:
        own = {"uptrain": None, "early-exit": self.exit_epochs, "gate": self.gate_epochs}[stage]
        return own or self.epochs


def options_from(given: Mapping[str, Any]) -> TrainOptions:
    """Options from a mapping of YAML's or the command line's types.

    Raises:
        BadInputError: there is no such option, or it is of another type.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(TrainOptions)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise BadInputError(f"{key}: no such option; choose from {', '.join(map(_flag, sorted(kinds)))}")
        values[name] = _stages(value) if name == "stages" else _typed(key, value, kinds[name])
    return TrainOptions(**values)


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a YAML file, by name.

    Raises:
        BadInputError: the file is missing or holds something else.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{path}: must hold options as `name: value` lines")
    return {str(key): value for key, value in found.items()}


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _stages(value: Any) -> tuple[Stage, ...]:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
    return STAGES if names == ["all"] else tuple(names)  # type: ignore[arg-type]  # checked by TrainOptions


def _typed(key: str, value: Any, kind: str) -> Any:
    """A value of an option's type; YAML reads 2e-4 as text."""
    if value is None and "None" in kind:
        return None
    try:
        if "bool" in kind and isinstance(value, bool):
            return value
        if "float" in kind and not isinstance(value, bool):
            return float(value)
        if kind == "int" and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if isinstance(value, str) and kind not in ("int", "bool"):
            return value
    except (TypeError, ValueError):
        pass
    raise BadInputError(f"{key}: {value!r} is not of the type {kind}")
