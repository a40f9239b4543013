"""What `peers.py` measures, by shape and kind of rows, and the tables of what it found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCKS = (32, 128)  # weights that share a scale: of our bundles and of onnxruntime-genai's models
LLAMA_CPP, GENAI, BEFORE = "llama.cpp", f"genai, blocks of {BLOCKS[0]}", "as before"
OURS = tuple(f"ours, blocks of {size}" for size in BLOCKS)
MERGED = tuple(f"{name}, adapters merged" for name in OURS)
UNSHARED = tuple(f"ours unshared, blocks of {size}" for size in BLOCKS)
BEGIN, END = "<!-- peers.py writes from here -->", "<!-- to here -->"
NAMES = {
    "tinyllama one": "TinyLlama's shape, 2 loops, one sequence",
    "smollm one": "SmolLM-135M's shape, 3 loops, one sequence",
    "tinyllama exits": "TinyLlama's shape, tokens that leave early",
    "smollm exits": "SmolLM-135M's shape, tokens that leave early",
    "tinyllama batch4": "TinyLlama's shape, four sequences at once (tokens a second of all together)",
    "smollm batch4": "SmolLM-135M's shape, four sequences at once (tokens a second of all together)",
    "tinyllama batch8": "TinyLlama's shape, eight sequences at once (tokens a second of all together)",
    "smollm batch8": "SmolLM-135M's shape, eight sequences at once (tokens a second of all together)",
    "demo questions": "The demo, which is trained, on 200 held-out questions",
}
LABELS = {
    "decode": "",
    "decode:ngram": "n-gram drafts",
    "decode:trace=0": "full depth without drafts",
    "decode:full": "full depth as it runs",
    "decode:full:accept=0.8": "full depth, 80 % of drafts stand (*simulated*)",
    "decode:full:accept=1": "full depth, all drafts stand (*simulated*)",
    "decode:depth=1": "`depth=1`",
    "decode:trace=0.6": "60 % leave after loop 1, `exact`",
    "full without drafts": "full depth without drafts",
    "full": "full depth, its own drafts",
}


@dataclass(frozen=True)
class Measured:
    """One test: tokens a second, prompt and first tokens included in `prefill`; memory and file in bytes.

    `steps`: calls, or readings of the block's weights, for a token. `stood`: of the drafts, where they are real.
    """

    test: str
    decode: float
    prefill: float
    steps: float
    peak: float
    bytes: float
    stood: float | None = None


@dataclass(frozen=True)
class Contender:
    """A model, in a process of its own, and the tests it runs there; `file` is in the shape's folder."""

    name: str
    engine: str
    file: str
    tests: tuple[str, ...]


def _ours(names: tuple[str, ...], file: str, *tests: str) -> list[Contender]:
    return [Contender(name, "ours", f"{file}-{size}", tests) for name, size in zip(names, BLOCKS, strict=True)]


def _one(shape: str) -> list[Contender]:
    """One sequence."""
    tests = ("decode:trace=0", "decode:full:accept=0.8", "decode:full:accept=1")
    return [
        Contender(LLAMA_CPP, "llama_cpp", "llama.gguf", ("decode", "decode:ngram")),
        Contender(GENAI, "genai", f"genai-{BLOCKS[0]}", ("decode", "decode:ngram")),
        Contender(f"genai, blocks of {BLOCKS[1]}", "genai", f"genai-{BLOCKS[1]}", ("decode",)),
        *_ours(OURS, "bundle", *tests),
        *_ours(MERGED, "merged", "decode:full"),
    ]


def _exits(shape: str) -> list[Contender]:
    """Tokens that leave early, and full depth as it runs by itself, beside how bundles ran before."""
    tests = ("decode:trace=0", "decode:trace=0.6", "decode:depth=1")
    return [Contender(BEFORE, "ours", "before", tests), *_ours(OURS, "bundle", *tests, "decode:full")]


def _batch4(shape: str) -> list[Contender]:
    """Four sequences at once, and eight of the unshared model."""
    return [
        Contender(LLAMA_CPP, "llama_cpp", "llama.gguf", ("decode:x4",)),
        Contender(GENAI, "genai", f"genai-{BLOCKS[0]}", ("decode:x4",)),
        *_ours(UNSHARED, "unshared", "decode:full:x8")[:1],
        *_ours(OURS, "bundle", "decode:trace=0:x4", "decode:full:accept=0.8:x4"),
    ]


def _batch8(shape: str) -> list[Contender]:
    """Eight sequences at once."""
    tests = ("decode:trace=0:x8", "decode:full:accept=0.8:x8")
    return [*_ours(UNSHARED, "unshared", "decode:full:x8"), *_ours(OURS, "bundle", *tests)]


def _questions(shape: str) -> list[Contender]:
    """A trained model's answers."""
    undrafted = "full without drafts"
    return [
        Contender(BEFORE, "questions", "before", (undrafted,)),
        Contender("ours", "questions", "bundle", (undrafted, "full")),
    ]


PARTS = {
    (shape, rows): contenders(shape)
    for shapes, rows, contenders in (
        (("tinyllama", "smollm"), "one", _one),
        (("tinyllama", "smollm"), "exits", _exits),
        (("tinyllama", "smollm"), "batch4", _batch4),
        (("tinyllama", "smollm"), "batch8", _batch8),
        (("demo",), "questions", _questions),
    )
    for shape in shapes
}


@dataclass(frozen=True)
class Aim:
    """What is to be reached: `test` of our models, to others of the same part, or a size (MiB, MB) that it may have."""

    what: str
    part: tuple[str, str]
    models: tuple[str, ...]
    test: str
    aims: tuple[float, ...]
    others: tuple[tuple[str, str], ...] = ()
    field: str = "decode"
    to_better: bool = False


PEERS = ((LLAMA_CPP, "decode"), (GENAI, "decode"))
BATCHES = tuple((name, "decode:full:x8") for name in UNSHARED)
AIMS = (
    Aim("TinyLlama, full depth, 0.8 of drafts stand (*simulated*)", ("tinyllama", "one"), OURS,
        "decode:full:accept=0.8", (1.30, 1.05), PEERS),
    Aim("TinyLlama, full depth, all drafts stand (*simulated*)", ("tinyllama", "one"), OURS,
        "decode:full:accept=1", (1.50, 1.25), PEERS),
    Aim("SmolLM, full depth, no drafts", ("smollm", "one"), OURS, "decode:trace=0", (0.95, 0.80), PEERS),
    Aim("SmolLM, full depth, all drafts stand (*simulated*)", ("smollm", "one"), OURS,
        "decode:full:accept=1", (1.05, 0.90), PEERS),
    Aim("SmolLM, adapters merged", ("smollm", "one"), MERGED, "decode:full", (1.20, 0.98), PEERS),
    Aim("demo, full depth with its own drafts, to as before", ("demo", "questions"), ("ours",), "full", (1.5,),
        ((BEFORE, "full without drafts"),)),
    Aim("TinyLlama, prompt", ("tinyllama", "one"), OURS, "", (0.95,), PEERS, "prompt", True),
    Aim("SmolLM, prompt", ("smollm", "one"), OURS, "", (0.85,), PEERS, "prompt", True),
    Aim("TinyLlama, peak memory in MiB", ("tinyllama", "one"), OURS, "", (700,), field="peak"),
    Aim("TinyLlama, bundle in MB", ("tinyllama", "one"), OURS, "", (365,), field="bytes"),
    Aim("TinyLlama, 60 % leave after loop 1, `exact`, to full depth as before", ("tinyllama", "exits"), OURS,
        "decode:trace=0.6", (1.5,), ((BEFORE, "decode:trace=0"),)),
    *(
        Aim(f"TinyLlama, batch of {batch}, full depth{how}, to unshared batches of 8, blocks of {against}",
            ("tinyllama", f"batch{batch}"), OURS, f"decode:{test}:x{batch}", (1.2,) * len(others), others)
        for batch, against, others in ((4, "32", BATCHES[:1]), (8, "32 / 128", BATCHES))
        for test, how in (("trace=0", " without drafts"), ("full:accept=0.8", ", 0.8 of drafts stand (*simulated*)"))
    ),
    *(
        Aim(f"{name}, `depth=1` to as before", (shape, "exits"), OURS, "decode:depth=1", (1.0,),
            ((BEFORE, "decode:depth=1"),))
        for name, shape in (("TinyLlama", "tinyllama"), ("SmolLM", "smollm"))
    ),
)  # fmt: skip


class Part:
    """What one run found: medians by model and test."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.medians: dict[str, dict[str, Measured]] = {}
        self.prompts: dict[str, float] = {}  # tokens a second, of all tests whose prompts run all depths
        for model, repeats in found["models"].items():
            runs = [run for tests in repeats for run in tests if "depth=" not in run["test"]]
            self.prompts[model] = statistics.median(run["prefill"] for run in runs)
            for several in zip(*repeats, strict=True):
                median = Measured(**{field: _median([run[field] for run in several]) for field in several[0]})
                self.medians.setdefault(model, {})[median.test] = median

    def has(self, model: str, test: str) -> bool:
        return model in self.medians and (not test or test in self.medians[model])

    def peak(self, model: str) -> float:
        """Bytes of the model's process at most; without n-gram drafts, which have a context of their own."""
        return max(median.peak for test, median in self.medians[model].items() if test != "decode:ngram")

    def size(self, model: str) -> float:
        return next(iter(self.medians[model].values())).bytes

    def ratio(self, model: str, test: str, other: tuple[str, str]) -> float:
        return self.medians[model][test].decode / self.medians[other[0]][other[1]].decode

    def prompt_ratio(self, model: str, other: str) -> float:
        return self.prompts[model] / self.prompts[other]


def _median(values: list[Any]) -> Any:
    """The median of numbers; of anything else the first."""
    return statistics.median(values) if isinstance(values[0], (int, float)) else values[0]


def label(test: str) -> str:
    """A test in words."""
    base, _, batch = test.rpartition(":x")
    words = LABELS[base or test]
    return f"{words}, batch of {batch}".removeprefix(", ") if base else words


def aims_table(parts: dict[str, Part]) -> Iterator[str]:
    yield "| | measured | aim |"
    yield "|---|---|---|"
    for aim in AIMS:
        part = parts.get(" ".join(aim.part))
        cells = [] if part is None else [_cell(aim, part, model) for model in aim.models if part.has(model, aim.test)]
        least = "at most " if aim.field in ("peak", "bytes") else ""
        shown = " / ".join(f"{value:g}" if least else f"{value:.2f}" for value in aim.aims)
        yield f"| {aim.what}{_beside(aim)} | {'; '.join(cells) or 'not measured'} | {least}{shown} |"


def _beside(aim: Aim) -> str:
    if aim.others != PEERS:
        return ""
    return ", to the better peer" if aim.to_better else ", to llama.cpp / genai"


def _cell(aim: Aim, part: Part, model: str) -> str:
    """What one model reached, with a word where it missed."""
    if aim.field == "peak":
        values = [part.peak(model) / 2**20]
    elif aim.field == "bytes":
        values = [part.size(model) / 1e6]
    elif aim.field == "prompt":
        values = [part.prompt_ratio(model, name) for name, _ in aim.others]
    else:
        values = [part.ratio(model, aim.test, other) for other in aim.others]
    values = [min(values)] if aim.to_better else values
    pairs = list(zip(values, aim.aims, strict=True))
    missed = (
        any(value > most for value, most in pairs) if not aim.others else any(value < least for value, least in pairs)
    )
    shown = " / ".join(f"{value:.2f}" if aim.others else f"{value:.0f}" for value in values)
    name = model.partition("blocks of ")[2].partition(",")[0]
    return f"{f'{name}: ' if name else ''}{shown}{' (missed)' if missed else ''}"


def models_table(part: Part) -> Iterator[str]:
    peers = [peer for peer in PEERS if peer[0] in part.medians and peer[1] in part.medians[peer[0]]]
    peers = peers or [(name, "decode:x4") for name, _ in PEERS if name in part.medians]
    ratios = [f"to {name.partition(',')[0]}" for name, _ in peers]
    head = [
        "",
        "decode tok/s",
        *ratios,
        "steps a token",
        "drafts that stood",
        "prompt tok/s",
        *ratios,
        "peak MiB",
        "MB",
    ]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for model, tests in part.medians.items():
        prompts = [f"{part.prompts[model]:.0f}", *(f"{part.prompt_ratio(model, name):.2f}" for name, _ in peers)]
        once = [*prompts, f"{part.peak(model) / 2**20:.0f}", f"{part.size(model) / 1e6:.0f}"]
        for test, row in tests.items():
            words = label(test.replace(":full", "") if model in UNSHARED else test)
            cells = [
                ", ".join(filter(None, (model, words))),
                f"{row.decode:.1f}",
                *(f"{part.ratio(model, test, peer):.2f}" for peer in peers),
                f"{row.steps:.2f}",
                "" if row.stood is None else f"{row.stood:.0%}",
                *once,
            ]
            yield f"| {' | '.join(cells)} |"
            once = [""] * len(once)


def tables(results: dict[str, Any]) -> Iterator[str]:
    """All tables, line by line. Where and when it was measured stands once, if it is the same for all."""
    parts = {name: Part(results[name]) for name in NAMES if name in results}
    facts = {name: _facts(part.found) for name, part in parts.items()}
    yield from (f"{fact}.\n" for fact in sorted(set(facts.values())) if len(set(facts.values())) == 1)
    yield from aims_table(parts)
    for name, part in parts.items():
        tokens = part.found["tokens"]
        sizes = f"prompts of {tokens[0]} tokens, {tokens[1]} new ones, " if tokens else ""
        own = "" if len(set(facts.values())) == 1 else f" ({facts[name]})"
        share = part.found["beside"]
        own += f"; **other work took up to {share:.0%} of the processors meanwhile**" if share else ""
        yield f"\n{NAMES[name]}; {sizes}medians of {part.found['repeats']} in turn{own}:\n"
        yield from models_table(part)


def _facts(found: dict[str, Any]) -> str:
    return f"{found['date']}, {found['processor']}, {found['threads']} threads; {', '.join(found['versions'])}"


def rewrite(path: Path, lines: list[str]) -> None:
    """Put the tables into a file, in place of those between its two marks."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not end:
        raise SystemExit(f"{path}: has no lines {BEGIN} and {END} to put the tables between")
    path.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{end}{behind}"]), "utf-8", newline="\n")
