"""Train a recursive checkpoint back: uptraining with distillation, early exits, then the exit gate."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.folder import is_recursive_checkpoint
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.text import Example, read_examples
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.exchange import settle, sync_folder
from rrt_edge.runtime.system.files import explained, new_folder, remove_folder, writing
from rrt_edge.runtime.system.progress import Progress
from rrt_edge.training.checkpoints import last_whole, mode, say, tell_changes
from rrt_edge.training.checks import check_training, streamed
from rrt_edge.training.data import Packed, PadCollator, stream_examples
from rrt_edge.training.distributed import is_main, main_first, processes, shard, wait
from rrt_edge.training.options import STAGES, Stage, TrainOptions
from rrt_edge.training.plots import plot_training
from rrt_edge.training.reporting import LOGGED, Reporter
from rrt_edge.training.teacher import CachedTeacher, OnlineTeacher, cache_teacher
from rrt_edge.training.trainer import StageTrainer

ATTENTION = None if torch.cuda.is_available() else "eager"  # on a CPU faster than sdpa at the lengths one trains there
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)  # the newer name first
LOG, PLOT, RUNS = "training.json", "training.png", "runs"


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
    eval_data: Path | str | None = None,
    teacher_cache: Path | str | None = None,
    options: TrainOptions | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train a recursive checkpoint through its stages and write the result to `out`.

    Started again with the same `out`, it goes on where it was interrupted: from the last stage finished, or from the
    last checkpoint of the one under way, both kept in `OUT.work` until the end. Beside the model, `out` gets the
    losses and evaluations (training.json), a plot of them (training.png) and TensorBoard's logs (runs).

    Args:
        checkpoint: a recursive checkpoint folder.
        out: the folder to write.
        data: text to train on (`rrt_edge.model.text.read_examples`), with the loss on the assistant's turns of
            chats; or `hub:NAME`, which is streamed.
        teacher: a checkpoint whose vocabulary is the same, usually the source; without one there is no distillation.
        eval_data: text on which every depth is evaluated.
        teacher_cache: where to keep what the teacher said (`TrainOptions.teacher_top_k`), for runs to come as well.
        progress: called with the steps done, the steps of the stage, and its name with the last loss.

    Raises:
        BadInputError: a folder, the data or an option is wrong.
        RRTEdgeError: another process trains to `out`, or the disk is full.
    """
    started = time.perf_counter()
    options, out = options or TrainOptions(), Path(out)
    check_training(checkpoint, out, data, teacher, eval_data, options)
    if options.cpu_replicas > 1 and (processes() > 1 or torch.accelerator.is_available()):
        raise BadInputError("cpu-replicas: are for one process on a CPU; leave it out with several, and on a GPU")
    if options.bits is not None and processes() > 1:
        raise BadInputError("bits: rounding is for one process; leave it out with several")
    texts = {"data": str(data), "eval_data": None if eval_data is None else str(eval_data)}
    models = {"checkpoint": str(checkpoint), "teacher": None if teacher is None else str(teacher)}
    work = out.with_name(f"{out.name}.work")
    with writing(out) if is_main() else nullcontext(), _kept_if_useful(work):
        if is_main():
            work.mkdir(exist_ok=True)
            tell_changes(work, {**texts, **models, **asdict(options)})
        source = Checkpoint(checkpoint)
        losses, count = _train(source, out, work, data, teacher, eval_data, teacher_cache, options, progress)
    seconds = round(time.perf_counter() - started, 1)
    return TrainReport(str(out), tuple(options.stages), count, losses, seconds)


@contextmanager
def _kept_if_useful(work: Path) -> Iterator[None]:
    """Where training fails before there is anything to go on from, leave nothing."""
    try:
        yield
    except BaseException:
        if is_main() and not [*work.glob("*/checkpoint-*"), *work.glob("*/finished"), *work.glob("teacher/*")]:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _train(
    source: Checkpoint,
    out: Path,
    work: Path,
    data: Path | str,
    teacher: Path | str | None,
    eval_data: Path | str | None,
    teacher_cache: Path | str | None,
    options: TrainOptions,
    progress: Progress | None,
) -> tuple[dict[str, float], int]:
    """The stages one after the other, and the result of the last as `out`: the losses, and how many examples."""
    online = None if teacher is None else _load_teacher(Path(teacher), source, _bf16(options))
    taught: OnlineTeacher | CachedTeacher | None = online
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    set_seed(options.seed)
    if processes() > 1:
        PartialState(cpu=not torch.accelerator.is_available())  # lets the processes find each other
    collator = PadCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
    examples = _dataset(str(data), tokenizer, options)
    evaluated = None if eval_data is None else read_examples(Path(eval_data), tokenizer, options.max_length)
    if online is not None and options.teacher_top_k:
        folder = Path(teacher_cache) if teacher_cache is not None else work / "teacher"
        settings: Any = {"top_k": options.teacher_top_k, "temperature": options.temperature, "batch": options.batch}
        with main_first():
            cache_teacher(online.model, examples, collator, folder, **settings, progress=progress)
        taught = CachedTeacher(folder)

    folder, losses = source.folder, dict[str, float]()
    for stage in [stage for stage in STAGES if stage in options.stages]:
        finished = work / stage / "finished"
        if not finished.is_dir():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)
            losses[stage] = _run_stage(
                stage, model, taught, examples, evaluated, collator, work / stage, options, progress
            )
        folder = finished
    if is_main():
        _publish(folder, source, out, work, options)
        remove_folder(work)
    wait()
    count = len(examples) if isinstance(examples, list) else options.max_steps * options.batch * options.accumulate
    return losses, count


def _dataset(data: str, tokenizer: PreTrainedTokenizerBase, options: TrainOptions) -> list[Example] | Any:
    """The rows to train on: a list, numbered for the teacher's cache, or a stream."""
    if streamed(data, options):
        stream = stream_examples(data, tokenizer, options.max_length)
        return Packed(stream, options.max_length) if options.packing else stream
    examples = read_examples(Path(data), tokenizer, options.max_length)
    if options.packing:
        random.Random(options.seed).shuffle(examples)
        examples = list(Packed(examples, options.max_length))
    return [{**example, "index": [number]} for number, example in enumerate(examples)]


def _bf16(options: TrainOptions) -> bool:
    """Whether to compute in bfloat16: as asked, else where a GPU does."""
    if options.bf16 is None:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return options.bf16


def _load_teacher(folder: Path, student: Checkpoint, bf16: bool) -> OnlineTeacher:
    source = Checkpoint(folder)
    vocabulary = student.config.text_config.vocab_size
    if source.config.get_text_config().vocab_size != vocabulary:
        raise BadInputError(f"{folder}: the teacher's vocabulary is not the student's {vocabulary} tokens")
    dtype = torch.bfloat16 if bf16 and torch.cuda.is_available() else torch.float32  # on a CPU autocast does
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION)
    return OnlineTeacher(model.eval().requires_grad_(False))


def _run_stage(
    stage: Stage,
    model: RecursiveForCausalLM,
    teacher: OnlineTeacher | CachedTeacher | None,
    examples: Any,
    evaluated: list[Example] | None,
    collator: PadCollator,
    work: Path,
    options: TrainOptions,
    progress: Progress | None,
) -> float:
    if model.exit_gate is not None:  # learns in a stage of its own, in which the rest does not
        model.requires_grad_(stage != "gate")
        model.exit_gate.requires_grad_(stage == "gate" or (stage == "early-exit" and options.gate_learns_early))
    if stage != "uptrain":
        model.config.kv_rule = options.kv_rule
    if options.bits is not None or stage != "gate":  # a gate alone leaves the weights as they were trained
        model.config.trained_bits = options.bits
        model.config.trained_block_size = None if options.bits is None else options.block_size
        model.config.trained_eight_bit = None if options.eight_bit is None else list(options.eight_bit)
    arguments = _arguments(stage, work, evaluated is not None, options)
    if processes() > 1:
        shard(model, arguments.device)
    trainer = StageTrainer(
        stage=stage,
        teacher=teacher if stage != "gate" else None,
        options=options,
        model=model,
        train_dataset=examples,
        eval_dataset=evaluated,
        data_collator=collator,
        args=arguments,
    )
    Reporter(stage, progress).attach(trainer)
    checkpoint, step = last_whole(work)
    if checkpoint is not None and step >= trainer.all_steps:
        say(f"{stage}: step {step} is reached already, of {trainer.all_steps}; no further one is trained")
        trainer.take(checkpoint)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        loss = sum(losses) / max(1, len(losses))
    else:
        if checkpoint is not None:
            say(f"{stage}: going on from step {step} of {trainer.all_steps}")
        loss = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint)).training_loss
    if evaluated:
        trainer.evaluate()
    if stage == "gate":
        model.config.gate_trained = True
    partial = work / "finished.partial"
    with explained(work):
        if is_main():
            shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        wait()
        trainer.save_model(str(partial))
        if is_main():
            (work / LOG).write_text(json.dumps(trainer.state.log_history), "utf-8")
            settle(partial, mode(partial))
            partial.rename(work / "finished")
            sync_folder(work)
    wait()
    return round(float(loss), 4)


def _arguments(stage: Stage, work: Path, evaluates: bool, options: TrainOptions) -> TrainingArguments:
    """Return the arguments of transformers' Trainer."""
    tensorboard = importlib.util.find_spec("tensorboardX") or importlib.util.find_spec("tensorboard")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work / RUNS)
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs_of(stage),
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        **{CHECKPOINTING: options.gradient_checkpointing},
        learning_rate=options.lr_of(stage),
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        adam_beta2=0.95,
        bf16=_bf16(options),
        use_cpu=not torch.accelerator.is_available(),
        train_sampling_strategy="random" if options.stream or options.packing else "group_by_length",
        logging_steps=LOGGED,
        disable_tqdm=True,
        save_steps=options.save_steps,
        eval_strategy="steps" if evaluates and options.eval_steps else "no",
        eval_steps=options.eval_steps or None,
        report_to="tensorboard" if tensorboard else "none",
        seed=options.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _publish(finished: Path, source: Checkpoint, out: Path, work: Path, options: TrainOptions) -> None:
    """Write the trained weights, with the checkpoint's tokenizer, as `out`; and how it went.

    They have the checkpoint's own type; or float32 where export is to round them as training did.
    """
    dtype = source.dtype if options.bits is None else torch.float32
    model = AutoModelForCausalLM.from_pretrained(finished, dtype=dtype)
    logs: dict[str, Any] = {stage: json.loads((work / stage / LOG).read_text("utf-8")) for stage in options.stages}
    with new_folder(out, "recursive checkpoint", is_recursive_checkpoint) as folder:
        source.copy_companions(folder)
        (folder / LOG).write_text(json.dumps(logs, indent=1) + "\n", "utf-8", newline="\n")
        plot_training(logs, folder / PLOT)
        for stage in options.stages:
            if (work / stage / RUNS).is_dir():
                shutil.copytree(work / stage / RUNS, folder / RUNS / stage)
        model.save_pretrained(folder)
