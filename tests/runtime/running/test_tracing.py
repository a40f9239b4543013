"""RRT_EDGE_TRACE: a line for each call, beside what the decoder, the engine and the tokens say of the same calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnxruntime import InferenceSession
from transformers import AutoModelForCausalLM

from rrt_edge.cli import main
from rrt_edge.exporters import export
from rrt_edge.runtime import Engine, ExitPolicy, Model, Sampling
from rrt_edge.runtime.bundle.kv_rule_names import KVRuleName
from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.tracing import VARIABLE, WIDTHS, traced
from tests.conftest import ROOT
from tests.runtime.devices.decoding import on_device


def calls_of(printed: str) -> list[dict[str, str]]:
    """The lines by column, behind one with the columns' names; the milliseconds of a call stand in its first line."""
    names, *lines = printed.splitlines()
    assert names.split() == list(WIDTHS)
    rows = [dict(zip(WIDTHS, line.split(), strict=False)) for line in lines]
    assert all(float(row.get("ms", 1)) > 0 for row in rows)
    return rows


@pytest.fixture
def traced_model(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv(VARIABLE, "1")
    with Model.load(bundle) as model:
        yield model


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, "0", ""])
def test_nothing_stands_before_the_runner_where_nobody_asks(
    bundle: Path, value: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with Model.load(bundle) as model:
        assert type(model._loaded.runner) is BlockRunner
        model.generate("The cat", Sampling(max_tokens=3))
    assert capfd.readouterr().err == ""


def test_rows_exits_and_gates_are_those_of_the_reply(traced_model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    session = traced_model.session()
    reply = session.generate(list(range(2, 40)), Sampling(temperature=1, seed=1, max_tokens=60), "threshold=0.5")
    calls = calls_of(capfd.readouterr().err)
    assert [int(call["call"]) for call in calls] == list(range(1, len(calls) + 1))
    assert {call["form"] for call in calls} == {"run"}
    block_rows = 0
    for call in calls:
        first, _, last = call["depths"].partition("-")
        end = int(last or first) if call["exit"] == "-" else int(call["exit"])
        block_rows += (int(call["rows"]) + int(call["waiting"])) * (end - int(first) + 1)
    assert block_rows == session._decoder.block_rows
    exits = [(int(call["exit"]), call["gate"]) for call in calls if call["exit"] != "-"]
    assert exits == [(token.depth, f"{token.gate:.5f}>=0.5") for token in reply.tokens]
    assert len({token.depth for token in reply.tokens}) > 1
    goes_deeper = [call["gate"] for call in calls if "<" in call["gate"]]
    assert goes_deeper and all(gate.endswith("<0.5") for gate in goes_deeper)


@pytest.fixture(scope="module")
def propagating(make_recursive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, bundle = make_recursive(), tmp_path_factory.mktemp("bundle") / "bundle"
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.kv_rule = "propagate"
    model.save_pretrained(folder)
    export(folder, bundle, bits=32)
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["exact", "propagate", "device"])
def test_rows_that_waited_and_rows_held(
    runner: str, bundle: Path, propagating: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    rule: KVRuleName = "propagate" if runner == "propagate" else "exact"
    room, deeper = (256, 0) if runner == "device" else (64, 64)
    with (
        on_device(bundle) if runner == "device" else Model.load(propagating if rule == "propagate" else bundle) as model
    ):
        decoder = Decoder(traced(model._loaded.runner) if runner == "device" else model._loaded.runner, KV_RULES[rule])
        capfd.readouterr()
        decoder.prefill([3, 4, 5, 6, 7], ExitPolicy(depth=1))
        decoder.step(8, ExitPolicy(depth=2))
        decoder.step(9, ExitPolicy())
    calls = calls_of(capfd.readouterr().err)
    assert [tuple(call[name] for name in ("depths", "rows", "waiting", "KV", "exit")) for call in calls] == [
        ("1", "5", "0", "0/0", "-"),
        ("1", "1", "0", f"5/{room}", "1"),
        ("2", "1", "5", f"0/{deeper}", "2"),
        ("1-2", "1", "0", f"6/{room}", "2"),
        ("3", "1", "6", f"0/{deeper}", "3"),
    ]


def test_sequences_that_share_a_step_have_a_line_each(
    traced_model: Model, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced_model._loaded.drafting, "reads_text", False)  # a token a line, whatever steps take
    engine = Engine(traced_model)
    prompts = [[5, 6, 7], [9] * 40, [12, 13, 14, 15]]
    requests = [engine.submit(prompt, Sampling(max_tokens=20), "threshold=0.5") for prompt in prompts]
    list(engine.run())
    lines = calls_of(capfd.readouterr().err)
    assert {line["form"] for line in lines} == {"step"}
    shared = Counter(int(line["call"]) for line in lines)
    assert sorted(shared) == list(range(1, engine.steps + 1)) and max(shared.values()) == 3
    assert sum("ms" in line for line in lines) == engine.steps
    exits = Counter(int(line["exit"]) for line in lines if line["exit"] != "-")
    assert exits == Counter(token.depth for request in requests for token in request.tokens)
    assert sum(int(line["rows"]) for line in lines if line["depths"] == "1") == sum(map(len, prompts)) + 3 * 20 - 3
    assert any(line["waiting"] != "0" for line in lines)


def test_what_a_runner_has_beyond_the_protocol_is_still_there(traced_model: Model) -> None:
    assert isinstance(traced_model._loaded.runner.session, InferenceSession)  # type: ignore[attr-defined]
    assert traced_model._loaded.runner.bits == 32 and KV_RULES["exact"] in traced_model._loaded.runner.rules
    traced_model.close()


@pytest.mark.slow
def test_a_command_prints_it_beside_its_answer(bundle: Path) -> None:
    arguments = ["generate", str(bundle), "--prompt-ids", "20,30,40", "--max-tokens", "8", "--json", "--reproducible"]
    plain, with_lines = (CliRunner().invoke(main, arguments, env={VARIABLE: value}) for value in ("0", "1"))
    assert plain.stderr == "" and len(calls_of(with_lines.stderr)) >= 8
    answer = plain.stdout.partition('"stats"')[0]
    assert answer and with_lines.stdout.startswith(answer)


def test_the_docs_explain_every_column() -> None:
    page = (ROOT / "docs" / "engine.md").read_text("utf-8")
    assert [name for name in WIDTHS if f"| `{name}` |" not in page] == []
    assert " ".join(WIDTHS) in " ".join(page.split())
