"""`rrt-edge devices` and `--device`: what a user reads, types and is told."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime.running.devices.providers import PROVIDERS
from tests.program import refused, run
from tests.serving import Served, serving

ABSENT = "coreml" if sys.platform != "darwin" else "dml"  # never here


def test_devices_lists_every_name_and_what_is_missing() -> None:
    done = run("devices", "--json")
    listed = {one["name"]: one for one in json.loads(done.stdout)["devices"]}
    assert list(listed) == list(PROVIDERS)
    assert listed["cpu"]["usable"] and listed["cpu"]["memory_bytes"] > 1 << 28
    for name, one in listed.items():
        assert one["provider"] == PROVIDERS[name].execution_provider
        assert one["usable"] or one["problem"].startswith(f"device {name}: ")
    shown = " ".join(run("devices").stdout.split())
    for name, one in listed.items():
        assert (f"{name} " if one["usable"] else " ".join(one["problem"].split())) in shown


def test_a_driver_without_hardware_is_no_usable_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable that lets a software adapter stand in."""
    monkeypatch.setenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "0")
    listed = json.loads(run("devices", "--json").stdout)["devices"]
    webgpu = next(one for one in listed if one["name"] == "webgpu")
    assert webgpu["usable"] != bool(webgpu["problem"])
    assert not webgpu["software"]


def test_generate_runs_where_it_is_told(webgpu: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a budget; the JSON says where."""
    asked = ("generate", demo, "What does os.path.join do?", "--max-tokens", 6)
    here = run(*asked, "--device", "cpu", "--json")
    there = run(*asked, "--device", webgpu, "--kv-budget", 64, "--json")
    assert there.returncode == 0, there.stderr
    found, expected = json.loads(there.stdout), json.loads(here.stdout)
    assert (found["stats"]["device"], expected["stats"]["device"]) == ("webgpu", "cpu")
    assert found["text"] == expected["text"]
    monkeypatch.setenv("RRT_EDGE_DEVICE", webgpu)
    assert "tokens/s on webgpu" in run(*asked).stderr


def test_verify_runs_a_bundle_on_a_device(webgpu: str, demo: Path) -> None:
    assert run("verify", demo, "--device", webgpu).returncode == 0


def test_bench_measures_on_a_device(webgpu: str, bundle: Path) -> None:
    options = ("--prompt", 8, "--new", 4, "--repeats", 1, "--tests", "prefill:full,decode:full,decode:depth=1:x3")
    done = run("bench", bundle, "--device", webgpu, *options, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 3 and all(row["device"] == "webgpu" and row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "bench", "verify"])
def test_a_missing_device_is_one_line_with_its_remedy(bundle: Path, command: str) -> None:
    prompt = ["hi"] if command == "generate" else []
    port = ["--port", "0"] if command == "serve" else []
    provider = PROVIDERS[ABSENT]
    expected = f"error: device {ABSENT}: {provider.execution_provider} is not installed; {provider.install}\n"
    done = run(command, bundle, *prompt, *port, "--device", ABSENT)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_other_rules_run_on_the_cpu(bundle: Path) -> None:
    done = run("generate", bundle, "hi", "--kv-rule", "latest", "--device", "auto", "--max-tokens", 3)
    assert done.returncode == 0 and "on cpu" in done.stderr


def test_a_budget_that_is_too_small_is_one_line(endless: Path) -> None:
    prompt = ",".join(["7"] * 3000)
    told = refused("generate", endless, "--prompt-ids", prompt, "--context", 4000, "--kv-budget", 1, status=1)
    assert told.startswith("error: keys and values would take")
    assert "over the budget of 1048576; close conversations, shorten the prompt or raise the KV budget" in told
    refused("generate", endless, "hi", "--kv-budget", 0)


def test_a_server_runs_on_a_device(webgpu: str, demo: Path) -> None:
    """Several requests at once, through the step that several sequences share."""
    with serving(demo, "--device", webgpu) as server, serving(demo, "--device", "cpu") as here:

        def ask(where: Served, name: str) -> dict[str, Any]:
            body = {"messages": [{"role": "user", "content": f"What does {name} do?"}], "max_tokens": 30}
            answer: dict[str, Any] = where.post("/v1/chat/completions", body).json()
            return answer

        names = ["os.path.join", "json.dumps", "re.sub"]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda name: ask(server, name), names))
        for name, answer in zip(names, answers, strict=True):
            assert answer["rrt_edge"]["device"] == "webgpu"
            assert answer["choices"][0]["message"] == ask(here, name)["choices"][0]["message"]
