"""generation_config.json: what transformers' `generate` makes of it, or one line about what is odd."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rrt_edge.runtime import BadInputError, Sampling
from rrt_edge.runtime.decoding.default_sampling import default_sampling
from rrt_edge.runtime.decoding.sampler import Sampler
from rrt_edge.runtime.loaded import Loaded

VOCABULARY, PROMPT_TOKENS, END = 60, 4, 1
FILES: dict[str, dict[str, Any]] = {
    "empty": {},
    "greedy, though it names values": {"temperature": 0.6, "top_p": 0.9, "top_k": 5},
    "greedy, in so many words": {"do_sample": False, "temperature": 0.6, "min_p": 0.3},
    "greedy, null": {"do_sample": None, "temperature": 0.6},
    "greedy with a penalty": {"repetition_penalty": 1.7},
    "draws": {"do_sample": True},
    "draws, the rest null": {"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "min_p": None},
    "llama": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096},
    "qwen": {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "gemma": {"do_sample": True, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"},
    "all tokens": {"do_sample": True, "top_k": 0, "temperature": 1.5},
    "the likeliest of many": {"do_sample": True, "top_k": 1},
    "no share": {"do_sample": True, "top_p": 0.0},
    "the whole share": {"do_sample": True, "top_p": 1.0, "typical_p": 1.0, "temperature": 1},
    "a least share": {"do_sample": True, "min_p": 0.2, "top_k": 1000},
    "no least share": {"do_sample": True, "min_p": 0.0},
    "typical": {"do_sample": True, "typical_p": 0.6, "top_k": 0},
    "everything": {
        "do_sample": True, "temperature": 2.0, "top_k": 30, "top_p": 0.97, "min_p": 0.02, "typical_p": 0.8,
        "repetition_penalty": 1.3, "min_new_tokens": 9,
    },
    "not yet an end": {"do_sample": True, "min_new_tokens": 9, "top_k": 0},
    "nothing that changes a reply": {
        "do_sample": True, "renormalize_logits": True, "num_return_sequences": 3, "use_cache": False, "num_beams": 1,
        "transformers_version": "4.30.0", "no_repeat_ngram_size": 0, "presence_penalty": 2.0,
    },
}  # fmt: skip
BASE = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.2, "min_new_tokens": 2}
ODD: list[tuple[str, Any]] = [
    *(("do_sample", value) for value in ("false", "", 0, 1, [], {})),
    *(("temperature", value) for value in ("0.7", -1, [0.7], {}, True, 1e308)),
    *(("top_k", value) for value in (-1, 2.5, "50", 10**30, False)),
    *(("top_p", value) for value in (1.5, -0.1, {}, "1")),
    *(("min_p", value) for value in (2, -1, "0.1")),
    *(("typical_p", value) for value in (0, 1.5)),
    *(("repetition_penalty", value) for value in (0, -1.0, "1.1", [1.1], 1e300)),
    *((name, value) for name in ("max_new_tokens", "max_length") for value in (0, -5, "7", 1e3, [7], 10**30)),
    *(("min_new_tokens", value) for value in (-1, "7")),
    *(("stop_strings", value) for value in ([1], "", {}, 7, ["a", None])),
]
BROKEN = [
    b"{bad", b"", b"[]", b"7", b"null", b'"do_sample"', b"[" * 100_000, b"\xff\xfe",
    b'{"do_sample": true, "top_p": NaN}', b'{"do_sample": true, "do_sample": false}',
    b'{"do_sample": true, "temperature": 1e999}',
]  # fmt: skip
OURS = {  # transformers' processors that we have, or that change no reply
    "RepetitionPenaltyLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper",
    "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper", "LogitNormalization",
    "InfNanRemoveLogitsProcessor",
}  # fmt: skip
MORE: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 0}, {"bad_words_ids": [[3]]}, {"suppress_tokens": [3]},
    {"begin_suppress_tokens": [3]}, {"sequence_bias": [[[3], 1.0]]}, {"forced_bos_token_id": 3},
    {"forced_eos_token_id": 3}, {"exponential_decay_length_penalty": [5, 1.1]}, {"guidance_scale": 2.0},
    {"guidance_scale": 1}, {"encoder_repetition_penalty": 1.2}, {"encoder_repetition_penalty": 1.0},
    {"encoder_no_repeat_ngram_size": 2}, {"min_length": 5}, {"min_length": 0}, {"remove_invalid_values": True},
    {"watermarking_config": {"bias": 2.0, "seeding_scheme": "selfhash"}}, {"epsilon_cutoff": 3e-4},
    {"epsilon_cutoff": 3e-4, "do_sample": True}, {"eta_cutoff": 3e-4, "do_sample": True},
    {"eta_cutoff": 0.0, "do_sample": True}, {"top_h": 0.4, "do_sample": True}, {"top_h": 0.4},
    {"renormalize_logits": True}, {"bad_words_ids": None},
]  # fmt: skip


def write(folder: Path, config: Any) -> Path:
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "generation_config.json").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def llama(checkpoints: ModuleType) -> Any:
    from transformers import LlamaForCausalLM

    checkpoints.torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "eos_token_id": None}
    return LlamaForCausalLM(checkpoints.tiny_config(vocab_size=VOCABULARY, **sizes)).eval()


def processors(llama: Any, folder: Path) -> tuple[Any, Any]:
    """The whole config that `generate` makes of a folder's file, and its processors."""
    import torch
    from transformers import GenerationConfig

    llama.generation_config = GenerationConfig.from_pretrained(folder)
    config, _ = llama._prepare_generation_config(None)
    llama._prepare_special_tokens(config, True, device="cpu")
    ids = torch.zeros((1, PROMPT_TOKENS), dtype=torch.int64)
    return config, llama._get_logits_processor(config, PROMPT_TOKENS, encoder_input_ids=ids, device="cpu")


def theirs(llama: Any, folder: Path, logits: NDArray[np.float32], history: list[int]) -> NDArray[np.float64]:
    import torch

    config, change = processors(llama, folder)
    scores = change(torch.tensor([history]), torch.tensor(logits).double()[None])[0]
    if not config.do_sample:
        return np.eye(VOCABULARY)[int(scores.argmax())]
    probabilities: NDArray[np.float64] = torch.softmax(scores, -1).numpy()
    return probabilities


def ours(sampling: Sampling, logits: NDArray[np.float32], history: list[int]) -> NDArray[np.float64]:
    sampler = Sampler(sampling, PROMPT_TOKENS, (END,))
    if sampling.temperature == 0:
        return np.eye(VOCABULARY)[sampler.pick(logits, history)]
    tokens, probabilities = sampler.candidates(logits, history)
    whole = np.zeros(VOCABULARY)
    whole[tokens] = probabilities
    return whole


@pytest.mark.parametrize("name", FILES)
def test_tokens_are_chosen_as_transformers_does(llama: Any, tmp_path: Path, name: str) -> None:
    write(tmp_path, {**FILES[name], "eos_token_id": END})
    sampling = Sampling(**default_sampling(tmp_path))
    random = np.random.default_rng(len(name))
    for _ in range(20):
        logits = random.normal(scale=3, size=VOCABULARY).astype(np.float32)
        history = random.integers(0, VOCABULARY, PROMPT_TOKENS + 3).tolist()
        np.testing.assert_allclose(
            ours(sampling, logits, history), theirs(llama, tmp_path, logits, history), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(
    "config",
    [
        {"max_new_tokens": 7}, {"max_length": 12}, {"max_new_tokens": 5, "max_length": 30},
        {"max_new_tokens": 9, "max_length": 6}, {"max_length": 12, "do_sample": True},
    ],
)  # fmt: skip
def test_replies_are_as_long_as_transformers(llama: Any, tmp_path: Path, config: dict[str, Any]) -> None:
    import torch

    sampling = Sampling(**default_sampling(write(tmp_path, config)))
    processors(llama, tmp_path)
    prompt = torch.arange(2, 2 + PROMPT_TOKENS)[None]
    length = llama.generate(prompt, attention_mask=torch.ones_like(prompt)).shape[1] - PROMPT_TOKENS
    assert sampling.most_tokens(PROMPT_TOKENS) == length


def test_a_prompt_beyond_the_length_of_both_has_a_reply_all_the_same(tmp_path: Path) -> None:
    sampling = Sampling(**default_sampling(write(tmp_path, {"max_length": 12})))
    assert sampling.most_tokens(11) == 1 and sampling.most_tokens(12) == sampling.most_tokens(500) == 12
    for value in (0, -1, "7", True, 1.5):
        with pytest.raises(BadInputError, match="max-length"):
            Sampling(max_length=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "stop"), [("###", ("###",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_strings_end_replies(tmp_path: Path, value: Any, stop: tuple[str, ...]) -> None:
    assert default_sampling(write(tmp_path, {"stop_strings": value})) == {"stop": stop}


def test_a_temperature_of_zero_is_greedy(tmp_path: Path) -> None:
    """`generate` refuses it and says that greedy must have been meant."""
    assert default_sampling(write(tmp_path, {"do_sample": True, "temperature": 0.0}))["temperature"] == 0


def test_no_file_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert default_sampling(tmp_path) == {} and not caplog.records


@pytest.mark.parametrize(("name", "value"), ODD, ids=[f"{name}-{at}" for at, (name, _) in enumerate(ODD)])
def test_an_odd_field_counts_as_absent_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: Any
) -> None:
    expected = default_sampling(write(tmp_path, {field: own for field, own in BASE.items() if field != name}))
    with caplog.at_level(logging.WARNING):
        assert default_sampling(write(tmp_path, {**BASE, name: value})) == expected
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{tmp_path / 'generation_config.json'}: not used: {name} ") and "\n" not in message
    assert "must be" in message and "correct the file" in message and len(message) < 700


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_costs_the_defaults_and_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        assert default_sampling(write(tmp_path, content)) == {}
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{tmp_path / 'generation_config.json'}: cannot be read (") and "\n" not in message
    assert "correct the file" in message


def test_all_that_is_odd_stands_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    default_sampling(write(tmp_path, {**BASE, "top_k": -1, "min_p": "x", "num_beams": 4, "max_time": 3.5}))
    (record,) = caplog.records
    for part in ("top_k -1", "min_p 'x'", "num_beams 4", "max_time 3.5"):
        assert part in record.getMessage()


@pytest.mark.parametrize("config", MORE, ids=str)
def test_what_transformers_would_do_and_we_do_not_is_named(
    llama: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, config: dict[str, Any]
) -> None:
    write(tmp_path, {**config, "eos_token_id": END})
    _, change = processors(llama, tmp_path)
    beyond = {type(processor).__name__ for processor in change} - OURS
    caplog.clear()
    default_sampling(tmp_path)
    assert [f"not supported, so that replies may differ from transformers': {next(iter(config))} " in line
            for line in caplog.messages] == [True] * bool(beyond)  # fmt: skip


class Bundle(Loaded):
    """A bundle of which nothing but what its makers chose is there."""

    def __init__(self, **own: Any) -> None:
        self.own_sampling = own


@pytest.mark.parametrize(
    ("own", "fields", "expected"),
    [
        ({}, {}, Sampling()),
        ({"temperature": 0.7}, {}, Sampling(temperature=0.7)),
        ({"temperature": 0.7, "top_k": 50}, {"temperature": 0, "seed": 1}, Sampling(top_k=50, seed=1)),
        ({"max_tokens": 9, "max_length": 9}, {}, Sampling(max_tokens=9, max_length=9)),
        ({"max_tokens": 9, "max_length": 9}, {"max_tokens": 12}, Sampling(max_tokens=12)),
        ({"stop": ("a",)}, {"stop": ()}, Sampling()),
        ({"min_tokens": 300}, {}, Sampling(min_tokens=256)),
        ({"min_tokens": 20}, {"max_tokens": 7}, Sampling(max_tokens=7, min_tokens=7)),
        ({"min_tokens": 20}, {"max_tokens": 7, "min_tokens": 3}, Sampling(max_tokens=7, min_tokens=3)),
    ],
)
def test_a_field_that_is_given_takes_the_place_of_that_field(
    own: dict[str, Any], fields: dict[str, Any], expected: Sampling
) -> None:
    assert Bundle(**own).sampling(**fields) == expected


def test_a_caller_may_have_defaults_and_a_limit_of_its_own() -> None:
    otherwise = Sampling(max_tokens=1024, seed=3)
    assert Bundle().sampling(otherwise) == otherwise
    assert Bundle(max_tokens=256).sampling(otherwise) == Sampling(max_tokens=256, seed=3)
    assert Bundle(max_tokens=256, min_tokens=200).sampling(otherwise, most_tokens=100, seed=4) == Sampling(
        max_tokens=100, min_tokens=100, seed=4
    )
    with pytest.raises(BadInputError, match="min-tokens 200: must not be above max-tokens 100"):
        Bundle().sampling(most_tokens=100, min_tokens=200)
    with pytest.raises(BadInputError, match="temperature -1"):
        Bundle().sampling(temperature=-1)
