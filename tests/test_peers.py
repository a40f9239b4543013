"""The tables of `benchmarks/peers.py`: what is simulated says so, ratios are those of one run, misses are said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime.measuring.bench import Case
from tests.conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import peer_tables
from peer_tables import AIMS, PARTS, Part, aims_table, label, models_table


def found(speeds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Results of a part, as `peers.py` keeps them, from tokens a second by model and test."""

    def run(test: str, speed: float) -> dict[str, Any]:
        return {"test": test, "decode": speed, "prefill": 10 * speed, "steps": 1.5, "peak": 800 << 20, "bytes": 4e8}

    models = {
        model: [[run(test, each[repeat]) for test, each in tests.items()] for repeat in range(3)]
        for model, tests in speeds.items()
    }
    facts = {
        "date": "2026-11-27",
        "processor": "2 cores",
        "threads": 2,
        "beside": 0.5,
        "repeats": 3,
        "tokens": [256, 128],
    }
    return {**facts, "versions": ["a==1"], "models": models}


@pytest.mark.parametrize("part", PARTS, ids=" ".join)
def test_bench_knows_each_test_and_what_is_drawn_says_simulated(part: tuple[str, str]) -> None:
    for contender in PARTS[part]:
        for test in contender.tests:
            drawn = Case.parse(test, "exact").accept is not None if contender.engine == "ours" else False
            assert ("simulated" in label(test)) == drawn, test


def test_what_is_aimed_at_is_measured() -> None:
    for aim in AIMS:
        measured = {(one.name, test) for one in PARTS[aim.part] for test in one.tests}
        assert all((model, aim.test) in measured or not aim.test for model in aim.models)
        assert set(aim.others) <= measured
        assert len(aim.aims) == (1 if aim.to_better or not aim.others else len(aim.others))
        assert ("simulated" in aim.what) == ("accept" in aim.test)


def test_ratios_are_of_medians_and_misses_are_said() -> None:
    test, ours = "decode:full:accept=0.8", peer_tables.OURS
    speeds = {
        name: {"decode": [20.0, 40.0, 1000.0], "decode:ngram": [40.0, 40.0, 40.0]} for name, _ in peer_tables.PEERS
    }
    speeds[ours[0]] = {"decode:trace=0": [38.0, 38.0, 38.0], test: [1.0, 44.0, 52.0]}
    speeds[ours[1]] = {"decode:trace=0": [36.0, 36.0, 36.0], test: [52.0, 36.0, 60.0]}
    part = Part(found(speeds))
    rows = [line.split(" | ") for line in aims_table({"tinyllama one": part})][2:]
    cells = {row[0]: row[1] for row in rows}
    drafts = "| TinyLlama, full depth, 0.8 of drafts stand (*simulated*), to llama.cpp / genai"
    assert cells[drafts] == "32: 1.10 / 1.10 (missed); 128: 1.30 / 1.30"
    assert cells["| TinyLlama, prompt, to the better peer"] == "32: 0.95; 128: 0.90 (missed)"
    assert cells["| TinyLlama, peak memory in MiB"] == "32: 800 (missed); 128: 800 (missed)"
    assert cells["| SmolLM, prompt, to the better peer"] == "not measured"
    line = next(line for line in models_table(part) if label(test) in line and ours[1] in line)
    assert line.startswith(f"| {ours[1]}, full depth, 80 % of drafts stand (*simulated*) | 52.0 | 1.30 | 1.30 | 1.50 |")


def test_answers_that_take_more_memory_with_ngram_drafts_do_not_count_for_a_peer() -> None:
    results = found({"llama.cpp": {"decode": [1.0, 1.0, 1.0], "decode:ngram": [1.0, 1.0, 1.0]}})
    for runs in results["models"]["llama.cpp"]:
        runs[1]["peak"] = 900 << 20
    assert Part(results).peak("llama.cpp") == 800 << 20


def test_tables_take_the_place_of_those_of_an_earlier_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{peer_tables.BEGIN}\nold\n{peer_tables.END}\n\nbehind\n", "utf-8")
    lines = list(peer_tables.tables({"smollm one": found({"llama.cpp": {"decode": [1.0, 2.0, 3.0]}})}))
    for _ in range(2):
        peer_tables.rewrite(page, lines)
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n\n{peer_tables.BEGIN}\n\n") and text.endswith(f"\n\n{peer_tables.END}\n\nbehind\n")
    assert "old" not in text and text.count("2026-11-27, 2 cores, 2 threads") == 1
    assert "| llama.cpp | 2.0 | 1.00 |" in text and "other work took up to 50%" in text
    page.write_text("nothing\n", "utf-8")
    with pytest.raises(SystemExit, match="has no lines"):
        peer_tables.rewrite(page, lines)
