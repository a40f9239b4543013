"""`TrainOptions`: how to train, from Python, flags or a YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rrt_edge.model.kv_rules import kv_rule
from rrt_edge.quantisation.blocks import BLOCK, SIZES
from rrt_edge.quantisation.plan import Part
from rrt_edge.runtime.bundle.kv_rule_names import KVRuleName
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import check_options, option

Stage = Literal["uptrain", "early-exit", "gate"]
Divergence = Literal["forward-kl", "reverse-kl", "jsd", "tvd"]
ExitLoss = Literal["aggressive", "weighted", "stochastic"]
Exits = Literal["random", "gate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def _stages(value: Any) -> tuple[str, ...]:
    """Stages of a text with commas, or of YAML's list."""
    names = tuple(part.strip() for part in (value.split(",") if isinstance(value, str) else value))
    return STAGES if names == ("all",) else names


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
        cpu_replicas: on a CPU, in one process: divide each batch over so many threads, each with a copy of the model
            that shares the weights and has gradients of its own (4 bytes a parameter more).
        bits: train with the rounding in it: in each step the weights are those that export would write in so many bits,
            and what is learnt of them is learnt by the floats behind them, which are saved. None: floats alone.
        block_size, eight_bit: of these bits, as in `rrt_edge.export`.
        bf16: mixed precision; where None, on GPUs that have it.
        gradient_checkpointing: run the block again in the backward pass instead of keeping what it computed.
        kd_weight: weight of the divergence from the teacher (section 3.1, appendix E).
        hidden_weight: weight, in all stages but the gate's, of the distance of the hidden states after each layer from
            those of the teacher, which has to be the checkpoint's source; it runs beside the student. Where the loops
            interleave, those of the first loop are compared.
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

    stages: tuple[Stage, ...] = option(
        STAGES,
        "Stages to run, in this order: uptrain, early-exit, gate; or all.",
        parse=_stages,
        section="Stages and how long",
    )
    epochs: float = option(1.0, "Passes over the data in each stage.", above=0)
    exit_epochs: float | None = option(None, "The same for the early-exit stage.", above=0, unset="--epochs")
    gate_epochs: float | None = option(None, "The same for the gate.", above=0, unset="--epochs")
    max_steps: int = option(
        0, "Steps of each stage, in the place of epochs; needed where the data is streamed.", least=0
    )
    batch: int = option(32, "Examples a step on each device; packed rows with --packing.", above=0, section="Batches")
    accumulate: int = option(1, "Batches whose gradients make one step.", above=0)
    packing: bool = option(
        False, "Put examples behind each other in rows of --max-length tokens; they do not see each other."
    )
    stream: bool = option(False, "Read and tokenize the data while training.")
    lr: float = option(2e-4, "Peak learning rate of the block in uptraining.", above=0, section="Learning rates")
    lora_lr: float | None = option(None, "The same for the adapters.", above=0, unset="--lr")
    exit_lr: float | None = option(None, "The same for both in the early-exit stage.", above=0, unset="--lr")
    gate_lr: float = option(1e-2, "The same for the gate.", above=0)
    warmup: int = option(40, "Steps of warm-up in each stage.", least=0)
    weight_decay: float = option(0.0, "Of matrices.", least=0)
    cpu_replicas: int = option(
        1,
        "On a CPU, divide each batch over so many threads with a copy of the model each, which share the weights: as "
        "many as cores is fastest where other programs run too.",
        above=0,
        section="What it computes with",
    )
    bits: Literal[4] | None = option(
        None,
        "Train with the weights rounded as export rounds them to so many bits: the last part of a training.",
        unset="floats",
    )
    block_size: int = option(BLOCK, "With --bits: weights that share a scale.", choices=SIZES)
    eight_bit: tuple[Part, ...] | None = option(
        None,
        "With --bits: keep a part at 8 bits; may be repeated; none: all at 4, a tied embedding too.",
        unset="a tied embedding and head",
    )
    bf16: bool | None = option(None, "Mixed precision.", unset="on GPUs that have it")
    gradient_checkpointing: bool = option(
        False, "Run the block again in the backward pass: less memory, a third more time."
    )
    kd_weight: float = option(1.0, "Weight of the divergence from the teacher.", least=0, section="Distillation")
    hidden_weight: float = option(
        0.0,
        "Weight of how far hidden states are after each layer from the teacher's, which is the source.",
        least=0,
    )
    temperature: float = option(1.0, "Softens both sides of it.", above=0)
    divergence: Divergence = option("forward-kl", "Which one.")
    teacher_top_k: int = option(
        0, "Keep so many of the teacher's logits a position on disk, once, instead of running it beside.", least=0
    )
    exit_loss: ExitLoss = option(
        "aggressive",
        "aggressive: the last loop, and the earlier ones at --exit-weight; weighted: cross entropy of all; stochastic: "
        "each batch runs as many loops as is drawn.",
        section="Early exits",
    )
    exit_weight: float = option(1.0, "Weight of the earlier loops' losses.", least=0)
    exit_kd_weight: float = option(1.0, "Weight of the last loop's KL within them.", least=0)
    exit_teacher: bool = option(False, "Take that KL from the teacher instead.")
    kv_rule: KVRuleName = option("exact", "What a token that leaves early is to the loops it skips.")
    exits: Exits = option(
        "gate",
        "How tokens leave while the early-exit stage trains for another rule than exact: gate (half of them as it "
        "says) or random.",
    )
    max_length: int = option(1024, "Tokens an example is cut to.", above=0, section="Length, checkpoints, evaluation")
    seed: int = option(0, "Of the order of the data and of all that is drawn.")
    save_steps: int = option(200, "Steps between checkpoints to go on from.", above=0)
    eval_steps: int = option(0, "Steps between evaluations on --eval-data; 0: at the end of each stage.", least=0)
    eval_batches: int = option(50, "Batches an evaluation reads at most.", above=0)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise BadInputError(f"stages {', '.join(unknown) or '(none)'}: choose from {', '.join(STAGES)}, or all")
        check_options(self)
        for name, is_given in {"block-size": self.block_size != BLOCK, "eight-bit": self.eight_bit is not None}.items():
            if is_given and self.bits is None:
                raise BadInputError(f"{name} goes with bits 4; leave it out where weights are not rounded")
        if self.stream and not self.max_steps:
            raise BadInputError("stream: the end of a stream is not known; say how far with max-steps")
        if self.hidden_weight and (self.teacher_top_k or self.gradient_checkpointing):
            raise BadInputError(
                "hidden-weight needs the teacher beside the student and all that the layers computed; leave out "
                "teacher-top-k and gradient-checkpointing"
            )
        if self.teacher_top_k and (self.stream or self.divergence != "forward-kl"):
            raise BadInputError("teacher-top-k goes with forward-kl, and with data that is not streamed")

    def lr_of(self, stage: Stage) -> float:
        """The learning rate of the block in a stage."""
        return {"uptrain": self.lr, "early-exit": self.exit_lr or self.lr, "gate": self.gate_lr}[stage]

    @property
    def gate_learns_early(self) -> bool:
        """Whether the early-exit stage takes exits from the gate, which then learns in it too."""
        return self.exits == "gate" and kv_rule(self.kv_rule).exits_matter

    def epochs_of(self, stage: Stage) -> float:
        own = {"uptrain": None, "early-exit": self.exit_epochs, "gate": self.gate_epochs}[stage]
        return own or self.epochs


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a YAML file, by name.

    Raises:
        BadInputError: the file is missing or holds something else.
    """
    import yaml

    try:
        options = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise BadInputError(f"{path}: not valid YAML (nested too deep)") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:  # dates and numbers too
        raise BadInputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(options, dict):
        raise BadInputError(f"{path}: must hold options as `name: value` lines")
    return {str(key): value for key, value in options.items()}
