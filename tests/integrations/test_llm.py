"""The plug-in of the `llm` command line, through that command line itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.library.store import pull
from rrt_edge.runtime.system.options import options_in
from tests.manifests import replace_file

QUESTION = "What does os.path.join do?"


@pytest.fixture(scope="module")
def drawing(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, whose makers want tokens to be drawn."""
    folder = Path(shutil.copytree(demo, tmp_path_factory.mktemp("drawing") / "bundle"))
    config = {"do_sample": True, "temperature": 1.7, "max_new_tokens": 6}
    replace_file(folder, "generation_config.json", json.dumps(config).encode())
    return folder


@pytest.fixture(scope="module")
def llm(demo: Path, drawing: Path, tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("llm")
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "RRT_EDGE_HOME": str(home / "rrt"), "LLM_USER_PATH": str(home / "llm")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRT_EDGE_HOME", environment["RRT_EDGE_HOME"])
        pull(str(demo), "pydoc")
        pull(str(drawing), "drawing")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "llm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)

    return run


@pytest.fixture(scope="module")
def answer(demo: Path) -> str:
    with Model.load(demo) as model:
        return "".join(token.text for token in model.chat([{"role": "user", "content": QUESTION}], None, "threshold"))


def test_installed_bundles_are_its_models(llm) -> None:
    assert "rrt-edge/pydoc" in llm("models", "list").stdout
    assert "exit_policy" in llm("models", "list", "--options").stdout


def test_it_answers_streamed_or_not_and_goes_on_with_a_conversation(llm, answer: str) -> None:
    for options in ((), ("--no-stream",)):
        assert llm("-m", "rrt-edge/pydoc", *options, QUESTION).stdout.strip() == answer
    assert llm("-m", "rrt-edge/pydoc", "-c", "And heapq.heappush?").stdout.strip()
    (logged,) = json.loads(llm("logs", "-n", "1", "--json").stdout)
    assert logged["input_tokens"] > 30  # the turn before is part of it
    assert logged["response_json"]["mean_depth"] >= 1


def test_options_and_schemas_reach_the_model(llm) -> None:
    deep = llm("-m", "rrt-edge/pydoc", "-o", "exit_policy", "full", "-o", "max_tokens", "5", QUESTION)
    assert deep.returncode == 0
    (logged,) = json.loads(llm("logs", "-n", "1", "--json").stdout)
    assert logged["response_json"]["mean_depth"] == 2 and logged["output_tokens"] == 5
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    )
    assert json.loads(llm("-m", "rrt-edge/pydoc", "--schema", schema, QUESTION).stdout)["n"] in (1, 2)


def test_every_field_of_sampling_is_an_option(llm, answer: str) -> None:
    listed = set(re.findall(r"^ +(\w+): ", llm("models", "list", "--options", "-m", "rrt-edge/pydoc").stdout, re.M))
    assert listed == {"exit_policy", *options_in(Sampling)} - {"n", "logprobs", "logit_bias", "first_loop"}
    sure = ("-o", "temperature", "3", "-o", "min_p", "1", "-o", "seed", "1")  # leaves the likeliest token alone
    assert llm("-m", "rrt-edge/pydoc", *sure, QUESTION).stdout.strip() == answer
    word = answer.split()[2]
    stopped = llm("-m", "rrt-edge/pydoc", "-o", "stop", word, "-o", "max_tokens", "200", QUESTION)
    assert stopped.stdout.strip() == answer.partition(word)[0].strip()


def test_what_the_options_leave_open_is_as_the_makers_chose(llm, drawing: Path) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    with Model.load(drawing) as model:
        own, greedy = (
            "".join(token.text for token in model.chat(messages, model.sampling(seed=1, **fields))).strip()
            for fields in ({}, {"temperature": 0, "max_tokens": 9})
        )
    assert llm("-m", "rrt-edge/drawing", "-o", "seed", "1", QUESTION).stdout.strip() == own
    options = ("-o", "temperature", "0", "-o", "max_tokens", "9")
    assert llm("-m", "rrt-edge/drawing", *options, QUESTION).stdout.strip() == greedy != own


def test_errors_are_one_line(llm) -> None:
    high = llm("-m", "rrt-edge/pydoc", "-o", "min_p", "2", QUESTION)
    assert high.returncode == 1 and "min-p 2.0: must be a number from 0 to 1" in high.stderr
    wrong = llm("-m", "rrt-edge/pydoc", "-o", "exit_policy", "depth=9", QUESTION)
    assert wrong.returncode == 1 and "exit policy 'depth=9'" in wrong.stderr and "Traceback" not in wrong.stderr
