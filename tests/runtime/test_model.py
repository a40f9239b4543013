"""Model and Session: the tokens transformers generates, whole characters, reuse between turns, clear refusals."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from rrt_edge.runtime import BadInputError, BundleError, ContextFullError, Model, Sampling
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from tests.manifests import edit_manifest


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copied"))


@pytest.mark.slow
def test_greedy_text_is_transformers(model: Model, recursive: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recursive)
    theirs = AutoModelForCausalLM.from_pretrained(recursive)
    for prompt in ("The cat", "dog eats the", "日本 sees"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = theirs.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
        generation = model.generate(prompt, Sampling(max_tokens=40), raw=True)
        assert [token.id for token in generation.tokens] == expected
        assert generation.text == tokenizer.decode([token for token in expected if token != 1])
        assert all(token.depth == 3 for token in generation.tokens)


def test_a_fixed_depth_is_transformers_at_that_depth(bundle: Path, recursive: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(recursive)
    ids = torch.tensor([[20, 30, 40]])
    for depth in (1, 2):
        running = ids
        for _ in range(15):
            running = torch.cat([running, theirs(running, depth=depth).logits[:, -1:].argmax(-1)], dim=1)
        with Model.load(bundle, reproducible=True) as model:  # a row for each token: nothing is drafted
            ours = model.generate([20, 30, 40], Sampling(max_tokens=15), f"depth={depth}")
        count = len(ours.tokens)
        assert [token.id for token in ours.tokens] == running[0, 3 : 3 + count].tolist()
        assert ours.stats.mean_depth == depth == ours.stats.block_rows_per_token


def test_statistics_add_up(model: Model) -> None:
    generation = model.generate([20, 30, 40, 50], Sampling(max_tokens=30), "threshold=0.5")
    stats, depths = generation.stats, [token.depth for token in generation.tokens]
    assert stats.prompt_tokens == 4 and stats.generated_tokens == len(depths)
    assert stats.mean_depth == pytest.approx(sum(depths) / len(depths), abs=1e-3)
    dropped = stats.drafted - stats.accepted
    assert 1 < stats.mean_depth < 3
    assert sum(depths) + dropped <= stats.block_rows <= 3 * (len(depths) + dropped)
    assert stats.block_rows_per_token == pytest.approx(stats.block_rows / len(depths), abs=1e-3)
    assert stats.peak_memory_bytes > 10_000_000 and stats.time_to_first_token_s > 0


def test_each_token_takes_a_row_a_loop_at_most_where_nothing_is_drafted(bundle: Path) -> None:
    with Model.load(bundle, reproducible=True) as model:
        stats = model.generate([20, 30, 40, 50], Sampling(max_tokens=30), "threshold=0.5").stats
    assert stats.drafted == 0 and 1 < stats.mean_depth <= stats.block_rows_per_token <= 3


def test_the_same_seed_repeats_and_another_does_not(model: Model) -> None:
    def ids(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, seed=seed, max_tokens=20)
        return [token.id for token in model.stream("The", sampling, raw=True)]

    assert ids(1) == ids(1) != ids(2)


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    whole = model.generate("The cat", Sampling(max_tokens=40), raw=True).text
    stop = whole[6:9]
    cut = model.generate("The cat", Sampling(max_tokens=40, stop=(stop,)), raw=True)
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_length_ends_at_max_tokens_and_at_the_context(bundle: Path) -> None:
    with Model.load(bundle, context=10) as model:
        assert model.generate([5] * 4, Sampling(max_tokens=3)).finish_reason == "length"
        generation = model.generate([5] * 4)
        assert generation.finish_reason == "length" and len(generation.tokens) == 6
        with pytest.raises(ContextFullError, match="prompt has 10 tokens and the context holds 10"):
            model.generate([5] * 10)


@pytest.mark.slow
def test_a_session_reuses_what_it_holds_and_answers_as_a_fresh_one(model: Model) -> None:
    session = model.session()
    messages = [{"role": "user", "content": "cat"}]
    for turn in range(3):
        fresh = list(model.chat(messages, Sampling(max_tokens=12), "threshold=0.5"))
        rows = session._decoder.block_rows
        ours = list(session.chat(messages, Sampling(max_tokens=12), "threshold=0.5"))
        assert [token.id for token in ours] == [token.id for token in fresh]
        if turn:
            prompt = len(model.encode_chat(messages))
            assert session._decoder.block_rows - rows < 3 * (prompt + 12)
        text = "".join(token.text for token in ours)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "dog"}]
    shorter = messages[:1]
    assert [t.id for t in session.chat(shorter)] == [t.id for t in model.chat(shorter)]


def test_a_stream_left_early_can_be_followed_by_another(model: Model) -> None:
    session = model.session()
    stream = session.stream("The cat", Sampling(max_tokens=30), "threshold=0.5", raw=True)
    for _ in range(4):
        next(stream)
    stream.close()
    assert session.stats.generated_tokens == 4
    again = [token.id for token in session.stream("The cat", Sampling(max_tokens=30), raw=True)]
    assert again == [token.id for token in model.stream("The cat", Sampling(max_tokens=30), raw=True)]


@pytest.mark.parametrize(
    "policy", ["deep", "depth=4", "depth=0", "depth=x", "threshold=1.5", "threshold=nan", "threshold"]
)
def test_wrong_exit_policies_are_refused_at_once(model: Model, policy: str) -> None:
    with pytest.raises(BadInputError, match="exit policy"):
        model.stream("The", exit_policy=policy)


def test_wrong_prompts_are_refused_at_once(model: Model) -> None:
    for prompt, message in (
        ("", "prompt is empty"),
        ([300], "token id 300"),
        ([-1], "token id -1"),
        ([5] * 600, "512"),
    ):
        with pytest.raises(BadInputError, match=message):
            model.stream(prompt, raw=True)


def test_a_closed_model_says_so(bundle: Path) -> None:
    model = Model.load(bundle)
    model.close()
    with pytest.raises(BadInputError, match="closed"):
        model.session()


def test_a_missing_bundle_and_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        Model.load(tmp_path / "none")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        Model.load(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_flipped_byte_is_found_when_loading(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: its SHA-256 is not the manifest's"):
        Model.load(copied)


def test_a_truncated_file_is_found_when_loading(copied: Path) -> None:
    data = (copied / "model.onnx.data").read_bytes()
    (copied / "model.onnx.data").write_bytes(data[:-100])
    with pytest.raises(BundleError, match=r"model\.onnx\.data: \d+ bytes, the manifest says"):
        Model.load(copied)


def test_a_changed_hash_in_the_manifest_is_found(copied: Path) -> None:
    edit_manifest(copied, lambda fields: fields["files"]["model.onnx"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match=r"model\.onnx: its SHA-256"):
        Model.load(copied)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("architecture", "loops"), 0, "loops is 0"),
        (("architecture", "loops"), 10**9, "loops is 1000000000"),
        (("architecture", "layers_per_block"), "4", "layers_per_block is '4'"),
        (("architecture", "vocabulary"), None, "vocabulary is None"),
        (("format_version",), 99, "format_version 99"),
        (("format",), "other", "format"),
        (("kv_rule",), "oldest", "kv_rule 'oldest'"),
        (("kv_rule",), "last", "kv_rule 'last'"),
        (("gate", "threshold"), 7, "gate.threshold 7"),
        (("eos_token_ids",), "1", "eos_token_ids"),
        (("files", "../outside"), {"bytes": 1, "sha256": "x"}, "leaves the bundle"),
        (("files", "/etc/passwd"), {"bytes": 1, "sha256": "x"}, "leaves the bundle"),
        (("files", "model.onnx"), 3, "must be an object"),
    ],
)
def test_a_manifest_that_lies_is_refused_by_field(
    copied: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    table = manifest
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Model.load(copied)


def test_a_manifest_of_another_graph_is_refused(copied: Path) -> None:
    edit_manifest(copied, lambda fields: fields["architecture"].update(layers_per_block=5))
    with pytest.raises(BundleError, match="is not the graph its manifest describes"):
        Model.load(copied)


def test_the_host_keeps_its_small_numbers(bundle: Path) -> None:
    """onnxruntime could flush denormals to zero, and would do so for the whole calling thread."""
    with Model.load(bundle) as model:
        model.generate([5, 6, 7], Sampling(max_tokens=3))
        assert np.float64(5e-324) * 1 > 0


def test_a_frozen_program_renders_templates_itself(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with Model.load(bundle) as model:
        expected = model.encode_chat(messages)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    before = psutil.Process().children()
    with Model.load(bundle, device="cpu") as model:
        assert model.encode_chat(messages) == expected
    assert psutil.Process().children() == before


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", []),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", []),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", ["leaves out what the user says, in every form"]),
        ("{{ messages[-1].content }}", ["leaves out what the user said before the last message"]),
    ],
)
def test_a_template_that_loses_words_is_told_of_when_loading(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: str, lines: list[str]
) -> None:
    monkeypatch.setattr(ChatTemplate, "from_folder", lambda folder: ChatTemplate(source, {}))
    with caplog.at_level(logging.WARNING), Model.load(bundle, device="cpu"):
        warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(lines)
    assert all(str(bundle) in warning and line in warning for warning, line in zip(warnings, lines, strict=True))


def test_chats_take_tools_and_further_variables(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}{{ enable_thinking }}"
    monkeypatch.setattr(model._loaded, "template", ChatTemplate(source, {}))
    messages, tools = [{"role": "user", "content": "Hi"}], [{"name": "f"}]
    ids = model.encode_chat(messages, tools=tools, chat_template_kwargs={"enable_thinking": False})
    assert model.tokenizer.decode(ids) == 'Hi[{"name": "f"}]False'
    stream = model.chat(messages, Sampling(max_tokens=3), tools=tools, chat_template_kwargs={"enable_thinking": False})
    assert list(stream) and stream.generation.stats.prompt_tokens == len(ids)
    monkeypatch.setattr(model._loaded, "template", ChatTemplate("{{ messages[0].content }}", {}))
    with pytest.raises(BadInputError, match="tools: not supported by this model"):
        model.chat(messages, tools=tools)


def test_a_call_goes_with_its_answer_where_the_context_is_full(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for m in messages %}{{ m.role[0] }}{% endfor %}"
    monkeypatch.setattr(model._loaded, "template", ChatTemplate(source, {}))
    calling = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turn = [{"role": "user", "content": "?"}, calling, {"role": "tool", "content": "9"}, calling | {"content": "9"}]
    system = {"role": "system", "content": "Be brief"}

    def letters(most: int, *messages: dict[str, object]) -> str:
        return str(model.tokenizer.decode(model.encode_chat(messages, most)))

    assert letters(99, system, *turn, *turn[:3]) == "suatauat"
    assert letters(5, system, *turn, *turn[:3]) == letters(1, system, *turn, *turn[:3]) == "suat"


def test_a_conversation_of_many_turns_is_shortened_without_rendering_each(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(model._loaded, "template", template := ChatTemplate(source, {}))
    rendered: list[int] = []
    prompt = template.prompt
    monkeypatch.setattr(template, "prompt", lambda messages, **more: rendered.append(1) or prompt(messages, **more))
    messages = [{"role": "user", "content": "a"}] * 3000
    assert len(model.encode_chat(messages, 7)) == 7 and len(rendered) < 20
