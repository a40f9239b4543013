"""Structured output: replies follow their schema, pattern or grammar at every exit policy."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from jsonschema import validate

from rrt_edge.runtime import BadInputError, Engine, Grammar, MissingExtraError, Model, Sampling
from rrt_edge.runtime.decoding.constraint import Grammars
from rrt_edge.runtime.loaded import insides

PROMPT = [20, 30, 40]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
        "eats": {"enum": ["hay", "hens"]},
    },
    "required": ["name", "legs", "eats"],
    "additionalProperties": False,
}
LARK = 'start: animal (" and " animal)*\nanimal: "cat" | "dog" | "fox"\n'
PATTERN = r"[a-f]{3}-[0-9]{2,4}"
POLICIES = ["full", "depth=1", "threshold=0.5", "mean-depth=1.5"]


@pytest.fixture(scope="module")
def model(bundle: Path):
    pytest.importorskip("llguidance")
    with Model.load(bundle) as loaded:
        yield loaded


def follows(kind: str, text: str) -> None:
    if kind == "json":
        validate(json.loads(text), SCHEMA)
    elif kind == "regex":
        assert re.fullmatch(PATTERN, text), text
    else:
        assert re.fullmatch(r"(cat|dog|fox)( and (cat|dog|fox))*", text), text


GRAMMARS = {"json": Grammar.json_schema(SCHEMA), "regex": Grammar.regex(PATTERN), "lark": Grammar.lark(LARK)}


@pytest.mark.slow
@pytest.mark.usefixtures("always_draft")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", GRAMMARS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_random_model_says_what_the_grammar_allows(model: Model, kind: str, policy: str, temperature: float) -> None:
    for seed in range(3):
        sampling = Sampling(max_tokens=200, temperature=temperature, seed=seed, grammar=GRAMMARS[kind])
        generation = model.generate(PROMPT, sampling, policy)
        if generation.finish_reason == "stop":
            follows(kind, generation.text)
        else:  # a random model may go on with "and dog" for ever
            assert kind == "lark"


def test_requests_of_the_engine_follow_grammars_of_their_own(model: Model) -> None:
    engine = Engine(model)
    requests = {
        kind: engine.submit(PROMPT, Sampling(max_tokens=60, temperature=1.0, seed=1, grammar=grammar), "threshold=0.5")
        for kind, grammar in GRAMMARS.items()
    }
    for _ in engine.run():
        pass
    for kind, request in requests.items():
        if request.finish_reason == "stop":
            follows(kind, request.text)
    assert requests["json"].finish_reason == requests["regex"].finish_reason == "stop"


def test_a_least_length_gives_way_to_a_grammar_that_must_end(model: Model) -> None:
    generation = model.generate(PROMPT, Sampling(max_tokens=50, min_tokens=40, grammar=Grammar.regex("cat")))
    assert generation.text == "cat" and generation.finish_reason == "stop"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Grammar.json_schema("{"), "json-schema: not valid JSON"),
        (lambda: Grammar.json_schema("[1]"), "json-schema: must be a JSON object"),
        (lambda: Grammar.json_schema({"type": "strin"}), "json-schema: "),
        (lambda: Grammar.regex("(a"), "regex: "),
        (lambda: Grammar.lark("start: nothing_there"), "lark: "),
        (lambda: Grammar.regex("a" * 200_000), "regex: 200,000 characters; 100,000 are the most"),
        (lambda: Grammar.json_schema({"enum": ["x" * 200_000]}), "json-schema: 200,"),
    ],
)
def test_a_wrong_or_huge_grammar_is_one_clear_line(model: Model, make, line: str) -> None:
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}") as caught:
        model.stream(PROMPT, Sampling(grammar=make()))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.slow
def test_without_llguidance_the_extra_is_named(model: Model, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with Model.load(bundle) as fresh, pytest.raises(MissingExtraError, match=r"pip install 'rrt-edge\[schema\]'"):
        fresh.stream(PROMPT, Sampling(grammar=Grammar.regex("a")))


def test_what_follows_a_draft_that_the_grammar_forbids_is_of_no_matter(model: Model) -> None:
    """Drafts from the text know no grammar; the reply goes on as if they had not been."""
    loaded = insides(model)
    ids = {letter: model.tokenizer.token_to_id(letter) for letter in "catdog"}
    grammars = Grammars(model.tokenizer, loaded.manifest.architecture.vocabulary, loaded.manifest.eos_token_ids)
    constraint = grammars.constraint(Grammar.regex("cat|dog"))
    assert constraint.allowed([ids["d"], ids["t"]], 9).any()
    assert constraint.allowed([ids["d"], ids["t"], ids["c"]], 8).any()
    assert constraint.allowed([ids["d"]], 10)[ids["o"]] and not constraint.allowed([ids["d"]], 10)[ids["t"]]
    assert constraint.allowed([ids["c"], ids["a"]], 9)[ids["t"]]
