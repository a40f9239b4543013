"""Prove a bundle against its source: hashes, graph contract, and the logits of every depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.exporters.checks import check_verification
from rrt_edge.exporters.source_model import depth_logits, source_model
from rrt_edge.exporters.tokenizer_files import check_tokenizer_of
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.check import DepthReport, Tolerance, VerifyReport, load_checked
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.runner import AnyRunner, Call
from rrt_edge.runtime.scoring.corpus import read_lines
from rrt_edge.runtime.scoring.examples import tokenized_records
from rrt_edge.runtime.scoring.metrics import log_softmax
from rrt_edge.runtime.system.progress import Progress, counted

POSITIONS = 2000  # the fewest compared
WINDOW = 128  # tokens a comparison runs at once
SAMPLED = 16  # sequences sampled from the source at once where no text is given
Float = NDArray[np.float32]


def verify(
    bundle: Path | str,
    *,
    source: Path | str | None = None,
    text: Path | str | None = None,
    loosened: Tolerance | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a bundle's files and graph and, with its source, the logits at each depth against torch in float32.

    The source is read by transformers itself, so that what we read otherwise is noticed: its weights, and the ids that
    its tokenizer gives texts and chats.

    Args:
        bundle: the bundle folder.
        source: the recursive checkpoint it was exported from, or the plain one, which is then converted the same way.
        text: text of the model's domain, at least 2,000 tokens: a plain file, or records in a .jsonl or .parquet;
            without it text is sampled from the source.
        device: what to run the bundle on, as for `Model.load`.
        loosened: tolerances that replace the strict ones of the bundle's bits; a check passed so is recorded in the
            manifest.
        progress: called with what is done, in all, and what it is: files, tokens sampled, texts compared.

    Raises:
        DeviceError: the device is not there, or cannot run the bundle.
        BadInputError: the bundle, the source or the text cannot be read, or they do not belong together.
    """
    if source is not None:
        check_verification(source, text)
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    alone, runner = load_checked(folder, manifest, device, progress)
    if runner is None:
        return alone
    if source is None:
        runner.close()
        return alone
    strict = alone.tolerance
    tolerance = strict if loosened is None else _merged(strict, loosened)
    try:
        checkpoint = Checkpoint(source)  # what a GGUF file's metadata say is there as long as this is
        check_tokenizer_of(checkpoint.folder, folder)
    except BadInputError as error:
        runner.close()
        return VerifyReport(False, True, (), tolerance, 0, str(error), alone.device)
    try:
        model = source_model(Path(source), manifest)
        shape = manifest.architecture
        size = min(WINDOW, shape.context_length, shape.short_context or WINDOW)  # longer ones rotate differently
        if text is None:
            windows = _sampled_windows(model, folder, size, progress)
        else:
            windows = _text_windows(Path(text), folder, size)
        depths, positions, largest = _compare(model, runner, windows, progress)
    finally:
        runner.close()
    problem = _problem(depths, tolerance, largest)
    if problem is None and tolerance != strict:
        record = {"loosened": dataclasses.asdict(tolerance), "depths": [dataclasses.asdict(depth) for depth in depths]}
        record["device"] = alone.device
        manifest.update(folder, lambda now: dataclasses.replace(now, verification=record))
    return VerifyReport(problem is None, True, depths, tolerance, positions, problem, alone.device)


def _merged(strict: Tolerance, loosened: Tolerance) -> Tolerance:
    loosest = {name: value for name, value in dataclasses.asdict(loosened).items() if value is not None}
    return dataclasses.replace(strict, **loosest)


@dataclass(frozen=True)
class Window:
    """A text to run, and the positions of it to compare."""

    ids: list[int]
    rows: list[int]


def _text_windows(path: Path, folder: Path, size: int) -> list[Window]:
    """The text in windows of at most `size` tokens: plain text cut between lines, or records; chats are left whole."""
    tokenizer = read_tokenizer(folder)
    if records := path.suffix in (".jsonl", ".parquet"):
        windows = []
        for example in tokenized_records(path, tokenizer, ChatTemplate.from_folder(folder)):
            ids, scored = list(example.ids), np.asarray(example.scored, np.bool_)
            if len(ids) > size and not scored.all():
                continue  # half a chat would be another one; a text may be cut
            for start in range(0, len(ids), size):
                rows = np.flatnonzero(scored[start : start + size][1:]).tolist()  # each predicts the token behind it
                if rows:
                    windows.append(Window(ids[start : start + size], rows))
    else:
        pieces: list[list[int]] = []
        for line in read_lines(path):
            ids = tokenizer.encode(line).ids
            if pieces and len(pieces[-1]) + len(ids) <= size:
                pieces[-1] += ids
            else:
                pieces += [ids[start : start + size] for start in range(0, len(ids), size)]
        windows = [Window(ids, list(range(len(ids)))) for ids in pieces]
    positions = sum(len(window.rows) for window in windows)
    if positions < POSITIONS:
        what = "tokens to predict in records that fit" if records else "tokens"
        raise BadInputError(f"{path}: {positions} {what}; the comparison needs at least {POSITIONS}")
    return windows


def _sampled_windows(model: PreTrainedModel, folder: Path, size: int, progress: Progress | None) -> list[Window]:
    """Text the source itself writes: replies to an empty message where it chats, else text from its start token."""
    text, template = model.config.get_text_config(), ChatTemplate.from_folder(folder)
    ends: list[int] = []
    if template is None:
        starts = (text.bos_token_id, text.eos_token_id, 0)
        prompt = [next(token for token in starts if isinstance(token, int))]
    else:
        empty = template.render([{"role": "user", "content": ""}])
        prompt = read_tokenizer(folder).encode(empty, add_special_tokens=False).ids
        ends = list(Manifest.read(folder).eos_token_ids)
    torch.manual_seed(0)
    windows: list[Window] = []
    while (sampled := sum(len(window.rows) for window in windows)) < POSITIONS:
        if progress is not None:
            progress(sampled, POSITIONS, "tokens sampled")
        ids = model.generate(
            torch.tensor([prompt] * SAMPLED),
            attention_mask=torch.ones(SAMPLED, len(prompt), dtype=torch.long),
            max_new_tokens=max(1, size - len(prompt)),
            do_sample=True,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        for row in ids.tolist():
            ended = (at for at in range(len(prompt), len(row)) if row[at] in ends)
            length = next(ended, len(row) - 1) + 1
            windows.append(Window(row[:length], list(range(len(prompt) - 1, length - 1))))
    return windows


def _compare(
    model: PreTrainedModel, runner: AnyRunner, windows: list[Window], progress: Progress | None
) -> tuple[tuple[DepthReport, ...], int, list[float]]:
    """Reports by depth, positions compared, and the largest absolute source logit by depth."""
    loops = runner.architecture.loops
    positions = 0
    worst, largest = [0.0] * loops, [0.0] * loops
    logits_of_windows = _source_logits(model, counted(windows, progress, "texts compared"))
    kl, agreed = [0.0] * loops, [0] * loops
    for window, source in logits_of_windows:
        positions += len(window.rows)
        for index in range(loops):
            ours = bundle_logits(runner, window, depth=index + 1)
            worst[index] = max(worst[index], float(np.abs(ours - source[index]).max()))
            largest[index] = max(largest[index], float(np.abs(source[index]).max()))
            kl[index] += _kl_sum(source[index], ours)
            agreed[index] += int((ours.argmax(-1) == source[index].argmax(-1)).sum())
    reports = tuple(
        DepthReport(index + 1, worst[index], kl[index] / positions, agreed[index] / positions) for index in range(loops)
    )
    return reports, positions, largest


def _source_logits(model: PreTrainedModel, windows: Iterable[Window]) -> Iterator[tuple[Window, list[Float]]]:
    for window in windows:
        yield window, [logits[window.rows].numpy() for logits in depth_logits(model, window.ids)]


def bundle_logits(runner: AnyRunner, window: Window, depth: int) -> Float:
    """Logits [R, V] of a window's compared rows after `depth` loops, in one call from an empty cache."""
    ids, cache = np.array(window.ids, np.int64), runner.new_cache()
    return runner.run(runner.bind(), cache, Call(ids, 0, 1, depth, logit_rows=window.rows)).logits


def _kl_sum(source: Float, ours: Float) -> float:
    """Sum over rows of KL(source || ours) of logits [S, V], in nats."""
    p, q = log_softmax(source), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum())


def _problem(depths: tuple[DepthReport, ...], tolerance: Tolerance, largest: list[float]) -> str | None:
    """The first tolerance broken, in words."""
    for report, scale in zip(depths, largest, strict=True):
        at = f"depth {report.depth}"
        error, kl, agreement = report.max_abs_logit_error, report.kl, report.top1_agreement
        if tolerance.max_abs_logit_error is not None and not error <= tolerance.max_abs_logit_error * max(1.0, scale):
            allowed = tolerance.max_abs_logit_error * max(1.0, scale)
            return f"{at}: a logit differs by {error:.2e}, allowed {allowed:.2e}"
        if tolerance.kl is not None and not kl <= tolerance.kl:
            return f"{at}: mean KL {kl:.4f}, allowed {tolerance.kl}"
        if tolerance.top1_agreement is not None and not agreement >= tolerance.top1_agreement:
            return f"{at}: top-1 agreement {agreement:.2%}, needed {tolerance.top1_agreement:.2%}"
    return None
