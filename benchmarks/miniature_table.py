"""The miniature's results as docs/miniature.md and its two plots: called by paper_miniature.py --table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# ruff: noqa: E501  (tables' lines)
DOCS = Path(__file__).resolve().parent.parent / "docs"
ABLATION = "exit-"
QUESTIONS = 2000
LOWEST = 85  # exact answers, %: where the plot begins
# What the paper finds: (better, worse, where); depth -1 is the last, 0 the first.
CLAIMS = [
    ("stepwise", "scratch-kd", -1, "sharing the trained layers beats the same size from scratch"),
    ("relaxed-16", "average", -1, "relaxing beats sharing alone, from the same block"),
    ("relaxed-16", "stepwise", -1, "relaxed beats the best that is only shared"),
    ("relaxed-16", "relaxed-4", -1, "a higher rank is better"),
    ("relaxed-16", "zero-16", -1, "adapters from the SVD beat adapters from zero"),
    ("relaxed-16", "stepwise-16", -1, "with adapters, average beats stepwise"),
    ("stepwise", "lower", -1, "without adapters, stepwise beats lower"),
    ("lower", "average", -1, "without adapters, lower beats average"),
    ("average", "random", -1, "without adapters, average beats random"),
    ("relaxed-16", "no-teacher", -1, "distillation helps"),
    ("average", "relaxed-16", 0, "relaxing makes the first loop worse"),
    ("exit-aggressive-kd", "exit-aggressive", 0, "distilling the exits helps the first loop"),
    ("exit-aggressive-kd", "exit-weighted", -1, "aggressive + KD keeps the last loop better than weighted losses"),
]
Results = Mapping[str, list[dict[str, Any]]]


def write_table(results: Mapping[str, dict[str, Any]], what: Mapping[str, str], rules: Mapping[str, Any]) -> None:
    by_cell: dict[str, list[dict[str, Any]]] = {}
    for key, row in sorted(results.items()):
        name, seed = key.split("/")
        by_cell.setdefault(name, []).append({**row, "seed": int(seed)})
    cells = {name: told for name, told in what.items() if name in by_cell}
    hours = sum(row["cpu_seconds"] for row in results.values()) / 3600
    main = [name for name in cells if not name.startswith(ABLATION)]
    ablation = [name for name in cells if name.startswith(ABLATION)]
    parts = [
        INTRO.format(runs=len(results), hours=hours),
        "## Sharing, relaxing, distilling\n",
        table(main, cells, by_cell),
        "![exact answers by parameters](miniature-parameters.png)\n",
        "## Early exits\n",
        "One body a seed (relaxed, average + SVD, rank 16), trained on for as many tokens again with the exits' loss.\n",
        table(ablation, cells, by_cell),
        "![exact answers by depth](miniature-depths.png)\n",
        "## A first loop that is good\n",
        beyond(by_cell, cells),
        "## Leaving for good\n",
        rule_table(rules),
        "## Beside the paper\n",
        claims(by_cell),
    ]
    (DOCS / "miniature.md").write_text("\n".join(parts), "utf-8", newline="\n")
    plot_parameters(main, by_cell, DOCS / "miniature-parameters.png")
    plot_depths(ablation, cells, by_cell, DOCS / "miniature-depths.png")


INTRO = """# The paper in miniature

Models of 1 to 1.6 million parameters (12 layers of width 96, or 6 run twice) learn what 400 names of Python's standard library do, asked in many
phrasings, beside plain text of docstrings. All start from one pretrained source (but those from scratch) and train on the same tokens; three seeds shuffle them.
Exact answers are to 2,000 questions in phrasings no training saw; perplexity is of docstrings of other modules. `python benchmarks/paper_miniature.py` makes
the {runs} runs ({hours:.1f} CPU-hours) and `python benchmarks/paper_miniature.py --table` this page. Means over the seeds, ranges in brackets.
"""


def table(names: list[str], what: Mapping[str, str], results: Results) -> str:
    lines = [
        "| model | parameters outside the embedding | exact, last loop | exact, first loop | perplexity of text |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        rows = results[name]
        first = "" if len(rows[0]["exact"]) == 1 else spread(rows, lambda row: 100 * row["exact"][0])
        cells = (
            f"{rows[0]['parameters'] / 1e6:.2f} M",
            spread(rows, lambda row: 100 * row["exact"][-1]),
            first,
            spread(rows, lambda row: row["text_perplexity"][-1]),
        )
        lines.append(f"| {what[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    found = [value(row) for row in rows]
    return f"{sum(found) / len(found):.1f} ({min(found):.1f} to {max(found):.1f})"


BASELINE = "exit-aggressive-kd"


def beyond(results: Results, what: Mapping[str, str]) -> str:
    """The gap of the first loop, and what it costs the last, beside the paper's best recipe."""
    if BASELINE not in results:
        return ""
    lines = [
        "The paper's relaxed models lose 12 to 14 points at the first loop. The gap between the last loop's exact answers and the first's, and the difference of the",
        f"last loop's from that of *{what[BASELINE]}* on the same questions (95 % interval over seeds and questions):\n",
        "| exit loss | gap, points | of the baseline's | last loop's difference, points |",
        "|---|---|---|---|",
    ]
    base = {row["seed"]: row for row in results[BASELINE]}
    whole = mean([gap(row) for row in base.values()])
    for name in (one for one in results if one.startswith(ABLATION) and one in what):
        rows = [row for row in results[name] if row["seed"] in base]
        own = mean([gap(row) for row in rows])
        pairs = [(answers(row["right"][-1]), answers(base[row["seed"]]["right"][-1])) for row in rows]
        ratio = "" if name == BASELINE else f"{own / whole:.2f}"
        cost = "" if name == BASELINE else difference(pairs)
        lines.append(f"| {what[name]} | {own:.1f} | {ratio} | {cost} |")
    return "\n".join(lines) + "\n"


def gap(row: dict[str, Any]) -> float:
    return 100 * float(row["exact"][-1] - row["exact"][0])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def answers(right: str) -> list[int]:
    """Whether each question was answered exactly."""
    return [int(bit) for bit in f"{int(right, 16):0{QUESTIONS}b}"]


def difference(pairs: list[tuple[list[int], list[int]]]) -> str:
    """The mean difference of paired answers in points, with its 95 % interval."""
    differences = [ours - theirs for one, other in pairs for ours, theirs in zip(one, other, strict=True)]
    middle = 100 * mean(differences)
    deviation = (mean([one**2 for one in differences]) - mean(differences) ** 2) ** 0.5
    spread = 100 * 1.96 * deviation / len(differences) ** 0.5
    return f"{middle:+.2f} ({middle - spread:+.2f} to {middle + spread:+.2f})"


RULES_INTRO = """Under the KV rule `exact` a token that left early is caught up when a later one goes deeper: its work is deferred. The other rules save it and change the model, so a model is trained for its rule.
One body a seed (relaxed, average + SVD, rank 16) was trained with equal exit weights for as many tokens under each rule, with exits drawn at random (of each text another share) or half of them by the gate as it learns, then the
gate. The bundles answer the 2,000 questions greedily at gate thresholds that make given mean depths; *untrained* is the model of `exact` under another rule. Exact answers in %, means over the seeds;
block rows a token as the runtime counts them; the difference from `exact` at mean depth 1.25 on the same questions, 95 % interval: `python benchmarks/miniature_rules.py`.
"""


RULES_FOUND = """Exits by the gate are at least as good as random ones under every rule, so they are the default where another rule than `exact` is trained for. `latest` trained so is not distinguished from
`exact` in quality, and saves what that defers: it is what to train for when leaving early is to pay. `propagate` hardly needs training here (untrained it loses least), but each token that left early still costs keys
and values of the loops it skipped. `skip` stays behind: a deep loop that does not see most tokens has less to go on. Trained models lose up to half a point at full depth, where nothing leaves."""


def rule_table(results: Mapping[str, Any]) -> str:
    """Quality and block rows of each KV rule at equal mean depth."""
    by_cell: dict[str, dict[str, Any]] = {}
    for key, row in results.items():
        name, seed = key.split("/")
        by_cell.setdefault(name, {})[seed] = row["points"]
    depths = [round(point["mean_depth"], 1) for point in by_cell["exact"]["0"][:2]]
    assert depths == [2.0, 1.5]
    lines = [
        RULES_INTRO,
        "| rule, mean depth | 2 | 1.5 | 1.25 | 1.1 | rows at 1.5 | at 1.25 | at 1.1 | from `exact` at 1.25, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in by_cell.items():
        rule, _, how = name.partition("-")
        label = f"`{rule}`" + {"": "", "random": ", random exits", "gate": ", exits by the gate"}.get(how, f", {how}")
        exact = [mean([100 * points[at]["exact"] for points in seeds.values()]) for at in range(4)]
        rows = [mean([points[at]["block_rows_per_token"] for points in seeds.values()]) for at in range(1, 4)]
        pairs = [(answers(seeds[one][2]["right"]), answers(by_cell["exact"][one][2]["right"])) for one in seeds]
        cells = [*(f"{one:.1f}" for one in exact), *(f"{one:.2f}" for one in rows)]
        lines.append(f"| {label} | " + " | ".join([*cells, difference(pairs) if how else ""]) + " |")
    return "\n".join([*lines, "", RULES_FOUND]) + "\n"


def claims(results: Results) -> str:
    lines = ["| the paper's finding | here |", "|---|---|"]
    for better, worse, depth, claim in CLAIMS:
        if better not in results or worse not in results:
            continue
        ours = [[100 * row["exact"][depth] for row in results[name]] for name in (better, worse)]
        means = [sum(one) / len(one) for one in ours]
        if min(ours[0]) > max(ours[1]):
            verdict = "the same"
        elif max(ours[0]) < min(ours[1]):
            verdict = "**the opposite**"
        else:
            verdict = "not distinguished"
        lines.append(f"| {claim} | {verdict}: {means[0]:.1f} against {means[1]:.1f} |")
    return "\n".join(lines) + "\n"


def plot_parameters(names: list[str], results: Results, path: Path) -> None:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(1, 1, 1)
    below: list[str] = []
    for name in names:
        exact = [100 * row["exact"][-1] for row in results[name]]
        middle = sum(exact) / len(exact)
        error = [[middle - min(exact)], [max(exact) - middle]]
        size = results[name][0]["parameters"] / 1e6
        if middle < LOWEST:
            below.append(f"{name} {middle:.0f}")
            continue
        marker = "osD^vP*X<>"[len(axes.lines) // 3 % 10]
        axes.errorbar([size], [middle], yerr=error, marker=marker, capsize=3, alpha=0.8, label=name)
    axes.set_title(f"below the plot: {', '.join(below)}", fontsize=9)
    axes.set_ylim(LOWEST, 100)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("parameters outside the embedding, millions")
    axes.set_ylabel("exact answers, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def plot_depths(names: list[str], what: Mapping[str, str], results: Results, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(1, 1, 1)
    for name in names:
        rows = results[name]
        depths = range(1, len(rows[0]["exact"]) + 1)
        means = [100 * sum(row["exact"][depth - 1] for row in rows) / len(rows) for depth in depths]
        axes.plot(list(depths), means, marker="o", label=what[name])
    axes.set_xticks(list(depths))
    axes.set_xlabel("loops run")
    axes.set_ylabel("exact answers, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
