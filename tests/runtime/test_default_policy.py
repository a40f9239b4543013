"""A request that names no exit policy gets the bundle's own, by whatever way it comes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from rrt_edge.cli import main
from rrt_edge.runtime import Engine, Model, Sampling
from tests.manifests import edit_manifest
from tests.serving import serving

PROMPT, SAMPLING = [5, 17, 40], Sampling(max_tokens=24)
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def calibrated(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a calibrated threshold."""
    folder = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(bundle, folder)
    edit_manifest(folder, lambda fields: fields["gate"].update(threshold=THRESHOLD))
    return folder


@pytest.fixture(scope="module")
def model(calibrated: Path) -> Iterator[Model]:
    with Model.load(calibrated) as loaded:
        yield loaded


def depths(model: Model, policy: str) -> list[int]:
    return [token.depth for token in model.generate(PROMPT, SAMPLING, policy).tokens]


def engine_depths(model: Model) -> list[int]:
    engine = Engine(model)
    request = engine.submit(PROMPT, SAMPLING)
    list(engine.run())
    return [token.depth for token in request.tokens]


WAYS: dict[str, Callable[[Model], list[int]]] = {
    "stream": lambda model: [token.depth for token in model.stream(PROMPT, SAMPLING)],
    "generate": lambda model: [token.depth for token in model.generate(PROMPT, SAMPLING).tokens],
    "choices": lambda model: [token.depth for token in model.choices(PROMPT, SAMPLING)[0].tokens],
    "session": lambda model: [token.depth for token in model.session().stream(PROMPT, SAMPLING)],
    "engine": engine_depths,
}


@pytest.mark.parametrize("way", WAYS)
def test_python_leaves_at_the_calibrated_threshold(model: Model, way: str) -> None:
    expected = depths(model, f"threshold={THRESHOLD}")
    assert WAYS[way](model) == expected != depths(model, "full")


def test_logits_come_from_the_depths_of_the_policy(model: Model) -> None:
    ids = [*PROMPT, 8, 9, 10]
    own, named = (list(model.session().logits(ids, 3, policy)) for policy in (None, f"threshold={THRESHOLD}"))
    assert [rows.tolist() for rows in own] == [rows.tolist() for rows in named]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_without_a_calibrated_threshold_all_loops_run(bundle: Path, way: str) -> None:
    with Model.load(bundle) as plain:
        assert set(WAYS[way](plain)) == {plain.loops}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_command_line_does_too(model: Model, calibrated: Path, command: str) -> None:
    if command == "generate":
        options = ["--prompt-ids", ",".join(map(str, PROMPT)), "--max-tokens", "24", "--json"]
        done = CliRunner().invoke(main, ["generate", str(calibrated), *options])
        tokens = json.loads(done.stdout)["tokens"]
        assert [token["depth"] for token in tokens] == depths(model, f"threshold={THRESHOLD}")
    else:
        done = CliRunner().invoke(main, ["chat", str(calibrated), "--max-tokens", "8"], input="hello\n/stats\n")
        assert "exit policy" in done.stdout and "threshold" in done.stdout


def test_the_server_does_too(model: Model, calibrated: Path) -> None:
    with serving(calibrated) as served:
        about = httpx.get(f"{served.url}/v1/models").json()["data"][0]["rrt_edge"]
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "return_depths": True}
        choice = httpx.post(f"{served.url}/v1/completions", json=body, timeout=None).json()["choices"][0]
    assert about["exit_policy"] == "threshold"
    assert [token["depth"] for token in choice["rrt_edge"]["tokens"]] == depths(model, f"threshold={THRESHOLD}")


def test_what_compares_stays_at_full_depth(calibrated: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("The cat sees the hen.\n\nThe dog eats the fox.\n", "utf-8")
    done = CliRunner().invoke(main, ["eval", str(calibrated), "--data", str(data), "--json"])
    scores = json.loads(done.stdout)["scores"]
    assert scores["depth=3"]["agreement"] == 1.0 and scores["depth=3"]["mean_depth"] == 3.0
