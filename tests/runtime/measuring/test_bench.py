"""`bench` measures what it says: cases, traces, rows of the agreed fields."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import BadInputError, Model
from rrt_edge.runtime.measuring.bench import Case, Row, Settings, bench, default_tests, read_bandwidth
from rrt_edge.runtime.measuring.exit_traces import trace
from rrt_edge.runtime.measuring.simulated import SimulatedDrafting

QUICK = Settings(prompt=9, new=20, repeats=2, threads=1)


@given(st.floats(0, 1), st.integers(1, 200), st.sampled_from([1, 4, 8]), st.integers(0, 5))
def test_a_trace_holds_exactly_its_share(share: float, tokens: int, run: int, seed: int) -> None:
    flags = trace(share, tokens, run, np.random.default_rng(seed))
    assert len(flags) == tokens and sum(flags) == round(share * tokens)


def test_a_clustered_trace_has_longer_runs() -> None:
    def changes(run: int) -> int:
        flags = trace(0.6, 1000, run, np.random.default_rng(0))
        return sum(one != other for one, other in itertools.pairwise(flags))

    assert changes(8) < 0.4 * changes(1)


def test_recorded_replies_are_replayed(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(
        "".join(json.dumps({"tokens": [{"depth": d} for d in reply]}) + "\n" for reply in ([1, 1, 3, 1], [2]))
    )
    settings = dataclasses.replace(QUICK, traces=str(path), repeats=1)
    single, batch = bench(bundle, dataclasses.replace(settings, tests=("decode:recorded:skip", "decode:recorded:x2")))
    assert single.mean_depth == single.block_rows_per_token == pytest.approx((6 + 2) / 5)
    assert 1.2 < batch.mean_depth < 2
    for text, complaint in (
        ('{"tokens": [{"depth": 4}]}', "line 1: depth 4 is not among 1 to 3"),
        ("[]", "line 1 is not a reply"),
        ("{", "line 1 is not a reply"),
        ('{"tokens": []}', "holds no reply"),
    ):
        path.write_text(text)
        with pytest.raises(BadInputError, match=complaint):
            bench(bundle, dataclasses.replace(settings, tests=("decode:recorded",)))
    path.unlink()
    with pytest.raises(BadInputError, match=r"traces\.jsonl: cannot be read"):
        bench(bundle, dataclasses.replace(settings, tests=("decode:recorded",)))
    with pytest.raises(BadInputError, match="--traces"):
        bench(bundle, dataclasses.replace(QUICK, tests=("decode:recorded",)))


def test_every_case_is_measured(bundle: Path) -> None:
    tests = (
        *default_tests((1, 2, 3)), "decode:full:accept=1", "decode:full:accept=0", "decode:x3:accept=1",
        "decode:threshold=0.5", "decode:trace=0.5", "decode:trace=0.5:skip", "decode:trace=0.5:last",
        "decode:clustered=0.5:latest:x3", "decode:x3", "decode:full:text=1", "decode:depth=1:text=0.5",
        "decode:x2:text=1",
    )  # fmt: skip
    rows = {row.test: row for row in bench(bundle, dataclasses.replace(QUICK, tests=tests))}
    assert list(rows) == list(tests)
    assert all(row.tokens_per_second > 0 and row.peak_memory_bytes > 0 and row.ttft_s > 0 for row in rows.values())
    full, skip, batch = rows["decode:full"], rows["decode:trace=0.5:skip"], rows["decode:clustered=0.5:latest:x3"]
    assert (rows["decode:trace=0.5:last"].kv_rule, rows["decode:trace=0.5:last"].block_rows_per_token) == ("last", 2)
    assert (full.mean_depth, full.tokens, full.simulated) == (3, 20, False) and full.block_rows_per_token >= 3
    drafted, wrong, many = (rows[f"decode:{test}"] for test in ("full:accept=1", "full:accept=0", "x3:accept=1"))
    assert drafted.simulated and wrong.simulated and drafted.block_rows_per_token == 3
    assert drafted.steps_per_token == (20 + 2) / 20  # three loops: the first token takes three steps
    assert wrong.steps_per_token == 3 and wrong.block_rows_per_token > 4
    assert many.steps_per_token < 0.6  # of three requests, each a token a step
    copied, shallow, together = (rows[f"decode:{test}"] for test in ("full:text=1", "depth=1:text=0.5", "x2:text=1"))
    assert copied.simulated and copied.block_rows_per_token == 3 and copied.steps_per_token <= 3
    assert shallow.simulated and shallow.mean_depth == 1 <= shallow.block_rows_per_token and together.simulated
    assert rows["decode:depth=1"].block_rows_per_token == 1 and rows["prefill:depth=2"].mean_depth == 2
    assert skip.mean_depth == skip.block_rows_per_token == 2
    assert (batch.batch, batch.kv_rule, batch.policy) == (3, "latest", "clustered=0.5")
    assert rows["decode:depth=1"].bytes_per_token < full.bytes_per_token
    assert full.bundle_bytes == sum(path.stat().st_size for path in bundle.iterdir())
    assert {field.name for field in dataclasses.fields(Row)} == {
        "test", "tokens", "batch", "policy", "kv_rule", "mean_depth", "block_rows_per_token", "steps_per_token",
        "tokens_per_second", "simulated", "spread", "ttft_s", "load_s", "bytes_per_token", "bandwidth_share",
        "peak_memory_bytes", "bundle_bytes", "threads", "device",
    }  # fmt: skip


@pytest.mark.parametrize(
    "test",
    [
        "encode",
        "decode:deep",
        "decode:depth=9",
        "prefill:x2",
        "decode:trace=2",
        "decode:trace=x",
        "decode:accept=2",
        "decode:accept=x",
        "prefill:accept=1",
        "decode:depth=1:accept=1",
        "decode:skip:accept=1",
        "decode:text=2",
        "prefill:text=1",
        "decode:text=1:accept=1",
        "decode:skip:text=1",
    ],
)
def test_other_tests_are_refused(bundle: Path, test: str) -> None:
    with pytest.raises(BadInputError):
        bench(bundle, dataclasses.replace(QUICK, tests=(test,)))


def test_cases_read_their_options_in_any_order() -> None:
    assert Case.parse("decode:skip:x8:trace=0.6", "exact") == Case("decode", "trace=0.6", "skip", 8)
    assert Case.parse("decode", "latest") == Case("decode", "full", "latest", 1)
    assert Case.parse("decode:x2:accept=0.8:full", "exact") == Case("decode", "full", "exact", 2, 0.8)
    assert Case.parse("decode:text=0.8:x2", "exact") == Case("decode", "full", "exact", 2, None, 0.8)


@pytest.mark.parametrize("share", [0.0, 0.33, 0.8, 1.0])
def test_the_stated_share_of_drafts_stands(share: float) -> None:
    drafting = SimulatedDrafting(share, 3)
    verdicts = [drafting.verdict(7, 7) == 7 for _ in range(400)]
    assert sum(verdicts) == 400 * share
    again, other = SimulatedDrafting(share, 3), SimulatedDrafting(share, 4)
    assert verdicts == [again.verdict(5, 5) == 5 for _ in range(400)]
    assert share in (0.0, 1.0) or verdicts != [other.verdict(5, 5) == 5 for _ in range(400)]
    assert all(drafting.verdict(8, 7) in (7, 8) for _ in range(40))


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < read_bandwidth(1) < 1e13


@pytest.mark.usefixtures("checkpoints")
def test_random_weights_of_a_shape_make_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rrt_edge.exporters import shapes

    tiny = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    for loops, rank in ((1, 0), (2, 8)):
        shapes.random_bundle("tiny", tmp_path / f"{loops}", loops=loops, rank=rank)
        with Model.load(tmp_path / f"{loops}") as model:
            assert model.loops == loops and model.manifest.architecture.rank == rank
            assert len(list(model.stream([1, 2, 3]))) == 125  # nothing ends it but the context
    with pytest.raises(BadInputError, match="shape 'huge': choose from tinyllama, smollm"):
        shapes.random_bundle("huge", tmp_path / "huge")
