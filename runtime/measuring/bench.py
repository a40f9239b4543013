"""Measure a bundle on this machine: prefill and decode by exit policy, KV rule and batch, interleaved repeats.

`python -m rrt_edge.runtime.measuring.bench BUNDLE JSON` measures in this process, whose peak memory is then the
bundle's alone; `rrt-edge bench` starts it so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrt_edge.runtime.bundle.kv_rule_names import RUN_RULE_NAMES, RunRuleName
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Stats
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.engine import Engine
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.measuring.exit_traces import joined, read_recorded, trace
from rrt_edge.runtime.measuring.simulated import SimulatedDrafting
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.running.devices.providers import device_for
from rrt_edge.runtime.system.machine import default_threads

CLUSTER = 8  # tokens that leave early one after another, on average, in a clustered trace
BANDWIDTH_BYTES = 256 << 20  # read to measure the memory's bandwidth
FORM = (
    "prefill or decode, then :POLICY (also trace=SHARE, clustered=SHARE, recorded), :accept=SHARE (of drafts, behind "
    "decode) or :text=SHARE (of drafts from the text), :KV-RULE and :xBATCH as wanted"
)


@dataclass(frozen=True)
class Settings:
    """`prompt` tokens are fed, `new` tokens generated, each case `repeats` times in turn with the others."""

    prompt: int = 256
    new: int = 128
    repeats: int = 3
    threads: int | None = None
    device: str | None = None
    tests: tuple[str, ...] = ()
    traces: str = ""  # a file of recorded replies, for the policy `recorded`


@dataclass(frozen=True)
class Row:
    """The result of one case: medians over the repeats. `spread` is (fastest - slowest) / median.

    `bytes_per_token`: weights and cache read for a token; `bandwidth_share`: that times tokens a second, of what
    plain reading reaches on this machine. `steps_per_token`: how often the block's weights were read for a token.
    `simulated`: that drafts stood was drawn (`accept=SHARE`, `text=SHARE`); all else was really done.
    """

    test: str
    tokens: int
    batch: int
    policy: str
    kv_rule: str
    mean_depth: float
    block_rows_per_token: float
    steps_per_token: float
    tokens_per_second: float
    simulated: bool
    spread: float
    ttft_s: float
    load_s: float
    bytes_per_token: int
    bandwidth_share: float
    peak_memory_bytes: int
    bundle_bytes: int
    threads: int
    device: str


@dataclass(frozen=True)
class Case:
    """One test. `policy` is an exit policy's text form, or `trace=SHARE`, `clustered=SHARE` or `recorded`.

    In a trace that share of the tokens leaves after loop 1, drawn independently or in runs; the others run all loops.
    `recorded` replays the depths of recorded replies. `accept`: the share of drafts that stand, where it is stated;
    `text`: of drafts from the text. Where neither is, drafts come from lesser depths alone: replies to random tokens
    repeat themselves as no others do.
    """

    kind: str
    policy: str
    rule: RunRuleName
    batch: int
    accept: float | None = None
    text: float | None = None

    @classmethod
    def parse(cls, text: str, rule: RunRuleName) -> Case:
        """Read `decode:depth=1`, `decode:trace=0.6:skip:x8` and the like.

        Raises:
            BadInputError: another form.
        """
        kind, *options = text.split(":")
        policy, batch = "full", 1
        shares: dict[str, float] = {}
        for option in options:
            if option in RUN_RULE_NAMES:
                rule = option
            elif option.startswith(("accept=", "text=")):
                shares[option.partition("=")[0]] = _share(option)
            elif option[:1] == "x" and option[1:].isdigit() and int(option[1:]):
                batch = int(option[1:])
            else:
                policy = option
        if kind not in ("prefill", "decode") or (kind == "prefill" and (batch > 1 or shares)) or len(shares) > 1:
            raise BadInputError(f"test {text!r}: must be {FORM}")
        return cls(kind, policy, rule, batch, shares.get("accept"), shares.get("text"))

    @property
    def simulated(self) -> bool:
        """Whether it is drawn which drafts stand."""
        return self.accept is not None or self.text is not None

    def drafting(self, seed: int) -> SimulatedDrafting | None:
        """What draws it."""
        share = self.accept if self.text is None else self.text
        return None if share is None else SimulatedDrafting(share, seed, from_text=self.text is not None)

    def exit_policy(self, model: Model, settings: Settings, seed: int) -> ExitPolicy:
        """The policy of one sequence; those of a batch differ by `seed`."""
        name = self.policy.partition("=")[0]
        if self.policy == "recorded":
            if not settings.traces:
                raise BadInputError("policy recorded: give a file of replies (--traces)")
            return ExitPolicy(trace=joined(read_recorded(Path(settings.traces), model.loops), settings.new, seed))
        if name not in ("trace", "clustered"):
            return model.policy(self.policy)
        early = trace(
            _share(self.policy), settings.new, CLUSTER if name == "clustered" else 1, np.random.default_rng(seed)
        )
        return ExitPolicy(trace=tuple(1 if leaves else model.loops for leaves in early))


def _share(text: str) -> float:
    """The number of a form `name=SHARE`."""
    try:
        share = float(text.partition("=")[2])
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise BadInputError(f"{text!r}: the share must be a number from 0 to 1")
    return share


def default_tests(depths: Sequence[int]) -> list[str]:
    """Prefill and decode at full depth, the last of those that may be read, and, one by one, at each lesser depth."""
    policies = ["full", *(f"depth={depth}" for depth in depths[:-1])]
    return [f"{kind}:{policy}" for kind in ("prefill", "decode") for policy in policies]


def bench(bundle: Path, settings: Settings, progress: Callable[[int, int, str], None] | None = None) -> list[Row]:
    """Measure a bundle.

    Raises:
        BundleError, BadInputError: as `Model.load`; a test of another form, or a prompt the context does not hold.
    """
    if min(settings.prompt, settings.new, settings.repeats) < 1:
        raise BadInputError("prompt, new tokens and repeats must be 1 or more")
    manifest = Manifest.read(bundle)
    names = settings.tests or default_tests(manifest.architecture.exits)
    cases = [Case.parse(name, manifest.kv_rule) for name in names]
    started = time.perf_counter()
    context = min(manifest.architecture.context_length, settings.prompt + settings.new + 1)
    device = device_for(settings.device, (case.rule for case in cases))
    with Model.load(bundle, context=context, threads=settings.threads, device=device) as model:
        load = time.perf_counter() - started
        loaded = insides(model)
        loaded.manifest = dataclasses.replace(loaded.manifest, eos_token_ids=())  # so that every reply has its length
        loaded.drafting.reads_text = False
        for name, case in zip(names, cases, strict=True):
            policy = model.policy(case.exit_policy(model, settings, 0))
            state = SequenceState(loaded.runner, loaded.kv_rule(case.rule))
            with _drafting(model, case, 0):
                if case.simulated and loaded.pipeline(state, policy) is None:
                    raise BadInputError(f"test {name!r}: nothing is drafted there")
        runs: dict[Case, list[_Run]] = {case: [] for case in cases}
        _measure(model, Case("decode", "full", model.manifest.kv_rule, 1), dataclasses.replace(settings, new=4), 0)
        for repeat in range(settings.repeats):
            for index, case in enumerate(cases):
                runs[case].append(_measure(model, case, settings, repeat))
                if progress is not None:
                    progress(repeat * len(cases) + index + 1, settings.repeats * len(cases), "measured")
        bandwidth = read_bandwidth(_threads(settings))
        size = sum(path.stat().st_size for path in bundle.iterdir())
        return [
            _row(name, case, runs[case], model, settings, load, bandwidth, size)
            for name, case in zip(names, cases, strict=True)
        ]


def _threads(settings: Settings) -> int:
    return settings.threads or default_threads() or os.cpu_count() or 1


@dataclass(frozen=True)
class _Run:
    """One repeat: tokens a second, what they cost, and how often a token read the block's weights."""

    tokens_per_second: float
    ttft: float
    mean_depth: float
    rows_per_token: float
    passes_per_token: float
    peak_memory_bytes: int


@contextmanager
def _drafting(model: Model, case: Case, seed: int) -> Iterator[None]:
    """Let drafts stand as a case states."""
    loaded = insides(model)
    own = loaded.drafting
    loaded.drafting = case.drafting(seed) or own
    try:
        yield
    finally:
        loaded.drafting = own


def _measure(model: Model, case: Case, settings: Settings, repeat: int) -> _Run:
    with _drafting(model, case, repeat):
        return _measure_drafting(model, case, settings, repeat)


def _measure_drafting(model: Model, case: Case, settings: Settings, repeat: int) -> _Run:
    rng = np.random.default_rng(repeat)
    vocabulary = model.manifest.architecture.vocabulary
    prompts = [rng.integers(0, vocabulary, settings.prompt).tolist() for _ in range(case.batch)]
    if case.batch > 1:
        return _batch(model, case, settings, prompts)
    new = 1 if case.kind == "prefill" else settings.new
    policy = case.exit_policy(model, settings, repeat)
    session = model.session(kv_rule=case.rule)
    generation = session.generate(prompts[0], Sampling(max_tokens=new), policy)
    stats = generation.stats
    if case.kind == "prefill":
        depth = policy.depth or model.loops
        return _Run(stats.prompt_tokens_per_second, stats.time_to_first_token_s, depth, depth, *_prefill(depth, stats))
    speed = stats.decode_tokens_per_second
    return _Run(
        speed,
        stats.time_to_first_token_s,
        stats.mean_depth,
        stats.block_rows_per_token,
        stats.steps_per_token,
        stats.peak_memory_bytes,
    )


def _prefill(depth: int, stats: Stats) -> tuple[float, int]:
    from rrt_edge.runtime.decoding.prompt_chunks import CHUNK

    return depth * -(-stats.prompt_tokens // CHUNK) / stats.prompt_tokens, stats.peak_memory_bytes


def _batch(model: Model, case: Case, settings: Settings, prompts: Sequence[list[int]]) -> _Run:
    """Tokens a second of a full batch: from when the last prompt is read to when the first reply ends."""
    engine = Engine(model, kv_rule=case.rule, prompt_rows=settings.prompt, kv_budget_bytes=1 << 62)
    requests = []
    for index, prompt in enumerate(prompts):
        policy = case.exit_policy(model, settings, index)
        requests.append(engine.submit(prompt, Sampling(max_tokens=settings.new), policy))
    began = time.perf_counter()
    while any(not request.tokens for request in requests):
        engine.step()
    started, steps = time.perf_counter(), engine.steps
    before = [request.generation.stats for request in requests]
    tokens = 0
    while not any(request.finish_reason for request in requests):
        tokens += len(engine.step())
    seconds, steps = time.perf_counter() - started, engine.steps - steps
    after = [request.generation.stats for request in requests]

    def gained(field: str) -> float:
        def total(stats: list[Stats]) -> float:
            return sum(float(getattr(reply, field)) * reply.generated_tokens for reply in stats)

        return (total(after) - total(before)) / tokens

    depth, rows = gained("mean_depth"), gained("block_rows_per_token")
    return _Run(tokens / seconds, started - began, depth, rows, steps / tokens, after[0].peak_memory_bytes)


def _row(
    name: str, case: Case, runs: list[_Run], model: Model, settings: Settings, load: float, bandwidth: float, size: int
) -> Row:
    def median(field: str) -> float:
        return statistics.median(float(getattr(run, field)) for run in runs)

    speeds = [run.tokens_per_second for run in runs]
    speed, manifest = median("tokens_per_second"), model.manifest
    weights = manifest.weight_bytes
    once = weights.get("head", weights["embedding"]) / case.batch if case.kind == "decode" else 0
    block: float = weights["block"] + weights.get("lora", 0) + weights["norms"]
    if manifest.merged:
        block /= model.loops  # a step reads one depth's
    cached = settings.prompt + settings.new // 2 if case.kind == "decode" else 0
    cache = cached * manifest.architecture.kv_bytes_per_token * median("mean_depth") / model.loops
    read = median("passes_per_token") * block + once + cache
    return Row(
        test=name,
        tokens=settings.prompt if case.kind == "prefill" else settings.new,
        batch=case.batch,
        policy=case.policy,
        kv_rule=case.rule,
        mean_depth=round(median("mean_depth"), 4),
        block_rows_per_token=round(median("rows_per_token"), 4),
        steps_per_token=round(median("passes_per_token"), 4),
        tokens_per_second=round(speed, 2),
        simulated=case.simulated,
        spread=round((max(speeds) - min(speeds)) / speed, 4),
        ttft_s=round(median("ttft"), 4),
        load_s=round(load, 3),
        bytes_per_token=int(read),
        bandwidth_share=round(read * speed / bandwidth, 4),
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs),
        bundle_bytes=size,
        threads=_threads(settings),
        device=model.device,
    )


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory together: the best of three."""
    pieces = np.array_split(np.ones(BANDWIDTH_BYTES // 8), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(np.max, pieces))
            best = max(best, BANDWIDTH_BYTES / (time.perf_counter() - started))
    return best


def main() -> None:
    fields = json.loads(sys.argv[2])
    settings = Settings(**{**fields, "tests": tuple(fields["tests"])})

    def report(done: int, total: int, what: str) -> None:
        print(json.dumps({"done": done, "total": total, "what": what}), flush=True)

    try:
        rows = [dataclasses.asdict(row) for row in bench(Path(sys.argv[1]), settings, report)]
        print(json.dumps({"rows": rows}))
    except RRTEdgeError as error:
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))


if __name__ == "__main__":
    main()
