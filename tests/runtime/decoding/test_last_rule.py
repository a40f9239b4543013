"""The KV rule `last` against its definition in torch: one slot that holds each row as its deepest loop made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.runtime import BadInputError, Engine, ExitPolicy, Model, Sampling
from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.decoding.decoder import Decoder
from tests.looped import write_looped

Made = dict[str, tuple[Path, Path]]
LOOPS = {"two": 2, "three": 3, "four": 4, "ouro": 4}
LAST = KV_RULES["last"]
CHUNK = 12


class OneSlot(DynamicCache):  # type: ignore[misc]
    """What every loop sees of earlier calls is the same: what the deepest loop made of them."""

    def __init__(self, layers: int, rounds: bool) -> None:
        super().__init__()
        self.block_layers, self.rounds, self.length = layers, rounds, 0
        self.past: dict[int, tuple[Tensor, Tensor]] = {}
        self.newest: dict[int, tuple[Tensor, Tensor]] = {}  # of this call's rows, past and all

    def update(self, keys: Tensor, values: Tensor, slot: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        layer = slot % self.block_layers
        new = tuple(map(rounded, (keys, values))) if self.rounds else (keys, values)
        past = self.past.get(layer, tuple(plane[:, :, :0] for plane in new))
        self.newest[layer] = tuple(torch.cat(both, dim=2) for both in zip(past, new, strict=True))  # type: ignore
        return self.newest[layer]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def end_call(self, count: int) -> None:
        self.past, self.length = dict(self.newest), self.length + count


def rounded(states: Tensor) -> Tensor:
    """Each row of a head, to 255 steps between its largest number and minus that."""
    scale = states.abs().amax(-1, keepdim=True) / 127
    return torch.round(states / scale) * scale


class Defined:
    """A checkpoint under `last`: calls of rows that all leave at one depth."""

    def __init__(self, folder: Path, rounds: bool = False) -> None:
        self.model, self.rounds = AutoModelForCausalLM.from_pretrained(folder), rounds
        self.start_again()

    def start_again(self) -> None:
        self.cache = OneSlot(self.model.config.layers_per_block, self.rounds)

    def call(self, ids: Sequence[int], depth: int) -> np.ndarray:
        """Logits [S, V] of the rows at the depth they leave at."""
        with torch.no_grad():
            out = self.model(torch.tensor([list(ids)]), past_key_values=self.cache, depth=depth)
        self.cache.end_call(len(ids))
        return out.logits[0].numpy()

    def step(self, token: int, threshold: float) -> tuple[np.ndarray, int]:
        """Logits [V] and depth of a token that leaves where its gate reaches a threshold."""
        loops = self.model.config.loops
        for depth in range(1, loops + 1):
            with torch.no_grad():
                out = self.model(torch.tensor([[token]]), past_key_values=self.cache, depth=depth)
            if depth == loops or torch.sigmoid(out.gate_logits[0, 0, depth - 1]) >= threshold:
                break
        self.cache.end_call(1)
        return out.logits[0, 0].numpy(), depth

    def text(self, prompt: Sequence[int], tokens: Sequence[int], depths: Sequence[int], chunk: int) -> list[np.ndarray]:
        """Logits behind each token of a reply: the prompt runs in calls of `chunk` rows, its last token by itself."""
        self.start_again()
        for start in range(0, len(prompt) - 1, chunk):
            self.call(prompt[start : min(start + chunk, len(prompt) - 1)], self.model.config.loops)
        entering = [prompt[-1], *tokens]
        return [self.call([token], depth)[0] for token, depth in zip(entering, depths, strict=False)]


@pytest.fixture(scope="module")
def made(make_recursive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoint and float32 bundle: our own of so many loops, and Ouro's."""
    folders = {name: make_recursive(loops=loops, rank=4) for name, loops in LOOPS.items() if name != "ouro"}
    folders["ouro"] = tmp_path_factory.mktemp("ouro") / "recursive"
    rrt_edge.convert(write_looped(folders["ouro"].with_name("source"), "ouro"), folders["ouro"])
    pairs = {name: (folder, tmp_path_factory.mktemp("bundle") / "bundle") for name, folder in folders.items()}
    for folder, bundle in pairs.values():
        export(folder, bundle, bits=32)
    return pairs


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrt_edge.runtime.decoding.prompt_chunks.CHUNK", CHUNK)


def some_ids(seed: int, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(2, 300, count).tolist()
    return ids


@pytest.mark.parametrize(("name", "kv_bits"), [*((name, 32) for name in LOOPS), ("three", 8)])
def test_each_logit_is_that_of_the_definition(made: Made, name: str, kv_bits: int, tmp_path: Path) -> None:
    (folder, bundle), loops = made[name], LOOPS[name]
    if kv_bits == 8:
        bundle = tmp_path / "bundle"
        export(folder, bundle, bits=32, kv_bits=8)
    ids = some_ids(loops, 100)
    depths = np.random.default_rng(loops).integers(1, loops + 1, 70).tolist()
    expected = Defined(folder, rounds=kv_bits == 8).text(ids[:31], ids[31:], depths, CHUNK)
    with Model.load(bundle) as model:
        decoders = {rule: Decoder(model._loaded.runner, KV_RULES[rule]) for rule in ("last", "exact", "latest")}
        for decoder in decoders.values():
            decoder.prefill(ids[:30], ExitPolicy())
        apart = dict.fromkeys(decoders, 0.0)
        for place, depth in enumerate(depths):
            for rule, decoder in decoders.items():
                logits = decoder.step(ids[30 + place], ExitPolicy(depth=depth)).logits
                apart[rule] = max(apart[rule], float(np.abs(logits - expected[place]).max()))
            if place == 40:  # what is rewound is as if it had not been
                for token in (9, 8, 7):
                    decoders["last"].step(token, ExitPolicy(depth=1 + token % loops))
                decoders["last"].rewind(71)
    most = 1e-4 if kv_bits == 32 else 4e-3  # a number between two steps of 8 bits may be rounded to either
    assert apart["last"] < most < 1e-2 < min(apart["exact"], apart["latest"])


@pytest.mark.parametrize(
    ("name", "threshold"), [*(("four", t) for t in (0.45, 0.5, 0.55)), *(("ouro", t) for t in (0.5, 0.7, 0.9))]
)
def test_tokens_leave_where_the_definition_has_them_leave(made: Made, name: str, threshold: float) -> None:
    folder, bundle = made[name]
    defined, ids, depths = Defined(folder), some_ids(7, 60), []
    defined.call(ids[:CHUNK], 4)
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner, LAST)
        decoder.prefill(ids[:CHUNK], ExitPolicy())
        for token in ids[CHUNK:]:
            step = decoder.step(token, ExitPolicy(threshold=threshold))
            logits, depth = defined.step(token, threshold)
            assert step.depth == depth
            np.testing.assert_allclose(step.logits, logits, atol=1e-4)
            depths.append(depth)
        assert decoder.block_rows == CHUNK * 4 + sum(depths) and decoder.state.cache.lengths == [60] * 4
    assert len(set(depths)) > 1


@pytest.mark.parametrize("name", LOOPS)
def test_several_sequences_at_mixed_depths_share_steps(
    made: Made, name: str, picked: dict[int, list[np.ndarray]]
) -> None:
    (folder, bundle), loops = made[name], LOOPS[name]
    rng, defined = np.random.default_rng(20 + loops), Defined(folder)
    with Model.load(bundle, kv_rule="last") as model:
        engine = Engine(model, prompt_rows=1000)  # so that each prompt is one call
        requests = []
        for length in (3, 19, 8, 30):
            prompt = some_ids(length, length)
            policy = ExitPolicy(trace=tuple(rng.integers(1, loops + 1, 25).tolist()))
            sampling = Sampling(max_tokens=25, temperature=2.0, seed=length)
            requests.append((prompt, engine.submit(prompt, sampling, policy)))
        list(engine.run())
    assert {token.depth for _, request in requests for token in request.tokens} == set(range(1, loops + 1))
    for prompt, request in requests:
        ids, depths = [token.id for token in request.tokens], [token.depth for token in request.tokens]
        expected = defined.text(prompt, ids, depths, 1000)
        for logits, wanted in zip(picked[id(request._reply.sampler)], expected, strict=True):
            np.testing.assert_allclose(logits, wanted, atol=1e-4)
        assert request.generation.stats.kv_rule == "last"


def test_a_prompt_in_parts_and_one_that_begins_alike(made: Made, picked: dict[int, list[np.ndarray]]) -> None:
    """The second prompt takes over the first one's rows, while that one's are on their way."""
    folder, bundle = made["three"]
    shared, ends = some_ids(3, 40), [some_ids(4, 9), some_ids(5, 6)]
    policy = ExitPolicy(trace=(3, 1, 2) * 3)
    with Model.load(bundle) as model:
        engine = Engine(model, kv_rule="last", prompt_rows=7)
        requests = [engine.submit(shared + ends[0], Sampling(max_tokens=9), policy)]
        for _ in range(3 * 6 + 1):  # six parts have run, the seventh's rows stand between loops
            engine.step()
        assert requests[0]._state.cache.lengths == [48, 42, 42]
        requests.append(engine.submit(shared + ends[1], Sampling(max_tokens=9), policy))
        list(engine.run())
    defined = Defined(folder)
    expected = defined.text(shared + ends[0], [token.id for token in requests[0].tokens], (3, 1, 2) * 3, 7)
    for logits, wanted in zip(picked[id(requests[0]._reply.sampler)], expected, strict=True):
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    defined.start_again()
    calls = [shared[start : start + 7] for start in range(0, 35, 7)] + [shared[35:40], ends[1][:-1]]
    for rows in calls:
        defined.call(rows, 3)
    entering = [ends[1][-1], *(token.id for token in requests[1].tokens)]
    for logits, token, depth in zip(picked[id(requests[1]._reply.sampler)], entering, (3, 1, 2) * 3, strict=False):
        np.testing.assert_allclose(logits, defined.call([token], depth)[0], atol=1e-4)


def test_forked_rewound_and_saved_conversations_go_on_by_the_definition(
    made: Made, tmp_path: Path, picked: dict[int, list[np.ndarray]]
) -> None:
    folder, bundle = made["four"]
    prompt, trace, path = some_ids(11, 20), (4, 1, 3, 2, 1, 4, 2), tmp_path / "talk.safetensors"
    with Model.load(bundle) as model:
        session = model.session(kv_rule="last")
        said = [token.id for token in session.stream(prompt, Sampling(max_tokens=7), ExitPolicy(trace=trace))]
        entering = [prompt[-1], *said[:6]]
        calls = [(prompt[:12], 4), (prompt[12:19], 4), *(([token], depth) for token, depth in zip(entering, trace))]  # noqa: B905
        session.save(path)
        sessions = {
            session: 26,
            model.load_session(path): 26,
            session.fork(): 26,
            session.fork(): 22,
            session.fork(): 15,
        }
        assert [len(other.ids) for other in sessions] == [26] * 5
        picked.clear()
        streams, prompts = [], []
        for place, (other, length) in enumerate(sessions.items()):
            other.rewind(length)
            prompts.append([*(prompt + said)[:length], 50 + place, 30 + place, 40 + place])
            sampling = Sampling(max_tokens=7, seed=place, temperature=2.0)
            streams.append(other.stream(prompts[-1], sampling, ExitPolicy(trace=trace)))
        replies = list(zip(*streams, strict=True))  # a token of each in turn
    defined = Defined(folder)
    for place, (length, seen) in enumerate(zip(sessions.values(), picked.values(), strict=True)):
        defined.start_again()
        for rows, depth in calls:
            if defined.cache.length < length:
                defined.call(rows[: length - defined.cache.length], depth)
        defined.call(prompts[place][length:-1], 4)
        entering = [prompts[place][-1], *(tokens[place].id for tokens in replies)]
        for logits, token, depth in zip(seen, entering, trace, strict=False):
            np.testing.assert_allclose(logits, defined.call([token], depth)[0], atol=1e-4)
    with safe_open(path, "numpy") as file:
        planes = sorted(name for name in file.keys() if name.startswith(("key", "value")))  # noqa: SIM118
        assert file.get_tensor("key.1.0").shape == (3, 2, 26, 16)
    assert planes == ["key.1.0", "value.1.0"]


def test_keys_and_values_take_what_one_loop_takes(made: Made) -> None:
    with Model.load(made["four"][1], context=200) as model:
        shape, sizes = model.manifest.architecture, {}
        for rule in ("exact", "last"):
            session = model.session(kv_rule=rule)
            session.generate(some_ids(1, 100), Sampling(max_tokens=28), "full")
            sizes[rule] = model._loaded.runner.budget.used
            held = [*session._decoder.state.cache.buffers(1), *session._decoder.state.cache.buffers(4)]
            arrays = {id(plane): plane.nbytes for plane in held}
            assert sum(arrays.values()) == sizes[rule] // (2 if rule == "exact" else 1)
            del session, held
            assert model._loaded.runner.budget.used == 0
        assert sizes["exact"] == 4 * sizes["last"] == shape.kv_bytes(128)
        assert shape.kv_bytes(10) == 4 * shape.kv_bytes(10, LAST) == model._loaded.runner.kv_bytes(10)
        ids = some_ids(2, 20)
        for rule, together in (("exact", 1), ("last", 4)):
            engine = Engine(model, kv_rule=rule, kv_budget_bytes=shape.kv_bytes(40))
            for _ in range(5):
                engine.submit(ids, Sampling(max_tokens=20))
            engine.step()
            assert len(engine.running) == together


def test_what_does_not_go_with_it_is_refused_in_words(made: Made, make_bundle: Callable[..., Path]) -> None:
    with Model.load(made["two"][1], kv_rule="last") as model:
        assert (
            model.session()._decoder.state.rule is LAST
            and model.generate([5], Sampling(max_tokens=1)).stats.kv_rule == "last"
        )
        assert model.session(kv_rule="exact").kv_rule == "exact"
        assert model.generate([5], Sampling(max_tokens=9), "lossless").stats.drafted == 0  # rows do not wait
    with Model.load(make_bundle(loops=1)) as model, pytest.raises(BadInputError, match=r"kv-rule last: .* one loop"):
        model.session(kv_rule="last")
    with pytest.raises(BadInputError, match="kv-rule 'first': choose from exact, propagate, latest, skip, last, auto"):
        Model.load(made["two"][1], kv_rule="first")


def test_auto_takes_the_own_rule_where_its_keys_and_values_fit(
    made: Made,
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = made["two"][1]
    with Model.load(bundle) as model:
        whole = model.manifest.architecture.kv_bytes(100)
    for budget, name in ((whole, "exact"), (whole - 1, "last")):
        with caplog.at_level("INFO"), Model.load(bundle, kv_rule="auto", context=100, kv_budget_bytes=budget) as model:
            assert model._loaded.rule.name == Engine(model).kv_rule == name
            assert model.generate([5, 6], Sampling(max_tokens=1)).stats.kv_rule == name
        assert f"kv-rule {name}: " in caplog.text
        caplog.clear()
    monkeypatch.setattr("rrt_edge.runtime.running.kv_choice.CGROUP", tmp_path)  # of a container with little memory
    (tmp_path / "memory.current").write_text("1000")
    for free, name in ((2 * whole, "exact"), (2 * whole - 1, "last")):
        (tmp_path / "memory.max").write_text(str(1000 + free))
        with Model.load(bundle, kv_rule="auto", context=100) as model:
            assert model._loaded.rule.name == name
    with Model.load(make_bundle(loops=1), kv_rule="auto", context=100) as model:
        assert model._loaded.rule.name == "exact"
