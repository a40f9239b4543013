"""A request that does not say how tokens are chosen gets what the bundle's makers chose, by whatever way it comes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from rrt_edge.cli import main
from rrt_edge.runtime import Engine, Model, Sampling
from tests.manifests import edit_manifest, replace_file
from tests.serving import serving

PROMPT, SEED = [5, 17, 40], 5
CHAT = [{"role": "user", "content": "hello"}]
CONFIG = {"do_sample": True, "temperature": 0.8, "top_k": 7, "repetition_penalty": 20.0, "max_new_tokens": 12}
OWN = Sampling(temperature=0.8, top_k=7, repetition_penalty=20, max_tokens=12, seed=SEED)
FLAGS = ["--prompt-ids", ",".join(map(str, PROMPT)), "--exit-policy", "full", "--json"]


@pytest.fixture(scope="module")
def drawing(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle whose makers want tokens to be drawn; nothing ends its replies."""
    folder = tmp_path_factory.mktemp("drawing") / "bundle"
    shutil.copytree(bundle, folder)
    replace_file(folder, "generation_config.json", json.dumps(CONFIG).encode())
    edit_manifest(folder, lambda fields: fields.update(eos_token_ids=[]))
    return folder


@pytest.fixture(scope="module")
def model(drawing: Path) -> Iterator[Model]:
    with Model.load(drawing) as loaded:
        yield loaded


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn without a seed is drawn with `SEED`."""
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: make(SEED if seed is None else seed))


def ids(model: Model, sampling: Sampling) -> list[int]:
    return [token.id for token in model.generate(PROMPT, sampling).tokens]


def engine_ids(model: Model) -> list[int]:
    engine = Engine(model)
    request = engine.submit(PROMPT)
    list(engine.run())
    return [token.id for token in request.tokens]


WAYS: dict[str, Callable[[Model], list[int]]] = {
    "stream": lambda model: [token.id for token in model.stream(PROMPT)],
    "generate": lambda model: [token.id for token in model.generate(PROMPT).tokens],
    "choices": lambda model: [token.id for token in model.choices(PROMPT)[0].tokens],
    "session": lambda model: [token.id for token in model.session().stream(PROMPT)],
    "engine": engine_ids,
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("way", WAYS)
def test_python_draws_as_the_makers_chose(model: Model, way: str) -> None:
    expected = ids(model, OWN)
    assert WAYS[way](model) == expected != ids(model, Sampling(max_tokens=12)) and len(expected) == 12


@pytest.mark.usefixtures("seeded")
def test_a_chat_does_too(model: Model) -> None:
    expected = [token.id for token in model.chat(CHAT, OWN)]
    assert [token.id for token in model.chat(CHAT)] == expected
    assert [token.id for token in model.session().chat(CHAT, context_full="shift")] == expected


def test_without_a_seed_each_reply_is_another(model: Model) -> None:
    assert len({tuple(ids(model, model.sampling(top_k=0, temperature=1e6))) for _ in range(3)}) == 3


def test_a_sampling_is_taken_as_it_is_and_fields_take_the_place_of_theirs(model: Model) -> None:
    greedy = Sampling(max_tokens=12)
    assert ids(model, greedy) == ids(model, greedy)
    assert model.sampling(seed=SEED) == OWN
    assert model.sampling(temperature=0, max_tokens=3) == Sampling(top_k=7, repetition_penalty=20, max_tokens=3)


def generated(bundle: Path, *options: str) -> list[int]:
    done = CliRunner().invoke(main, ["generate", str(bundle), *FLAGS, *options])
    return [token["id"] for token in json.loads(done.stdout)["tokens"]]


@pytest.mark.slow
def test_generate_does_too(model: Model, drawing: Path) -> None:
    assert generated(drawing, "--seed", str(SEED)) == ids(model, OWN)
    penalised = Sampling(repetition_penalty=20, max_tokens=12)
    assert generated(drawing, "--temperature", "0") == ids(model, penalised) != ids(model, Sampling(max_tokens=12))
    assert generated(drawing, "--seed", str(SEED), "--max-tokens", "4") == ids(model, OWN)[:4]
    assert generated(drawing, "--top-k", "1") == ids(model, penalised)


@pytest.mark.slow
def test_the_terminal_chat_does_too(model: Model, drawing: Path) -> None:
    command = ["chat", str(drawing), "--seed", str(SEED), "--exit-policy", "full"]
    expected = "".join(token.text for token in model.chat(CHAT, OWN))
    assert CliRunner().invoke(main, command, input="hello\n").stdout == expected + "\n"
    greedy = CliRunner().invoke(main, [*command, "--temperature", "0"], input="hello\n").stdout
    assert greedy == "".join(token.text for token in model.chat(CHAT, model.sampling(temperature=0))) + "\n" != expected


def test_the_server_does_too(model: Model, drawing: Path) -> None:
    def completed(**fields: object) -> list[int]:
        body = {"prompt": PROMPT, "seed": SEED, "exit_policy": "full", "return_depths": True, **fields}
        choice = httpx.post(f"{served.url}/v1/completions", json=body, timeout=None).json()["choices"][0]
        return [token["id"] for token in choice["rrt_edge"]["tokens"]]

    with serving(drawing) as served:
        assert completed() == ids(model, OWN)
        assert completed(max_tokens=4) == ids(model, OWN)[:4]
        assert completed(temperature=0) == ids(model, model.sampling(temperature=0))
        chat = {"messages": CHAT, "seed": SEED, "exit_policy": "full"}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=None).json()
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["message"]["content"] == "".join(token.text for token in model.chat(CHAT, OWN))


def test_inspect_shows_what_the_makers_chose(drawing: Path, bundle: Path) -> None:
    lines = CliRunner().invoke(main, ["inspect", str(drawing)], env={"COLUMNS": "200"}).stdout.splitlines()
    (text,) = [" ".join(line.replace("│", " ").split()) for line in lines if "sampling" in line]
    assert text == "sampling by default temperature 0.8, top_k 7, repetition_penalty 20.0, max_tokens 12"
    sampling = json.loads(CliRunner().invoke(main, ["inspect", str(drawing), "--json"]).stdout)["sampling"]
    assert Sampling(**sampling, seed=SEED) == OWN
    assert "sampling" not in CliRunner().invoke(main, ["inspect", str(bundle)]).stdout


@pytest.mark.parametrize("content", [b"{bad", b'{"do_sample": true, "temperature": "hot", "max_new_tokens": 6}'])
def test_a_broken_file_costs_the_defaults_and_a_line(
    drawing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    folder = Path(shutil.copytree(drawing, tmp_path / "bundle"))
    replace_file(folder, "generation_config.json", content)
    with caplog.at_level(logging.WARNING), Model.load(folder) as model:
        assert model.sampling() == (
            Sampling() if b"bad" in content else Sampling(temperature=1, top_k=50, max_tokens=6)
        )
        assert len(model.generate(PROMPT, model.sampling(max_tokens=4)).tokens) == 4
    (message,) = caplog.messages
    assert message.startswith(f"{folder / 'generation_config.json'}: ") and "correct the file" in message
    done = CliRunner().invoke(main, ["generate", str(folder), *FLAGS, "--max-tokens", "3"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["tokens"]) == 3
