"""A folder means what transformers says it means: for each family and each way of saving, its logits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import recursive_config
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.folder import INDEX, SINGLE
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.exporters import export, verify
from tests.checkpoints import save_tokenizer
from tests.families import CASES, random_model

HEAD = "lm_head.weight"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt_neox", "phi3", "olmo2", "granite")
TEXT = torch.randint(2, 300, (1, 20), generator=torch.Generator().manual_seed(3))
State = dict[str, Tensor]


def rewritten(folder: Path, change: Callable[[State], State]) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in change(load_file(folder / SINGLE)).items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def with_fields(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def noise(state: State) -> State:
    torch.manual_seed(5)
    return {name: torch.randn(tensor.shape) * 0.1 for name, tensor in state.items()}


def embedding(state: State) -> str:
    return next(name for name in state if "embed_tokens" in name or "embed_in" in name)


def sharded(folder: Path, size: str = "60KB") -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "parts", max_shard_size=size)
    (folder / SINGLE).unlink()
    for path in (folder / "parts").glob("*.safetensors*"):
        path.rename(folder / path.name)


def beside_older_shards(folder: Path) -> None:
    newer = (folder / SINGLE).read_bytes()
    rewritten(folder, noise)
    sharded(folder)
    (folder / SINGLE).write_bytes(newer)


def beside_an_index_of_nothing(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def named_in_the_config(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "mine.safetensors")
    save_file({"a": torch.ones(3)}, folder / SINGLE, metadata={"format": "pt"})
    with_fields(folder, transformers_weights="mine.safetensors")


def shards_that_overlap(folder: Path) -> None:
    """The index knows half of what its files hold, and the last file's tensors count."""
    state = load_file(folder / SINGLE)
    save_file(noise(state), folder / "a.safetensors", metadata={"format": "pt"})
    save_file(state, folder / "b.safetensors", metadata={"format": "pt"})
    (folder / SINGLE).unlink()
    weight_map = {name: "ab"[index % 2] + ".safetensors" for index, name in enumerate(state)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def buffers_of_every_type(folder: Path) -> None:
    kinds = (torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
             torch.float64, torch.float8_e4m3fn)  # fmt: skip
    extra = {f"{start}_state_{kind}".replace("torch.", ""): torch.ones(4).to(kind) for kind in kinds for start in "a_z"}

    def add(state: State) -> State:
        layer = next(name for name in state if ".layers.0." in name).partition(".layers.0.")[0] + ".layers.0"
        extra[f"{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8).half()
        extra[f"{layer}.self_attn._extra_state"] = torch.ones(3, dtype=torch.uint8)
        extra[f"{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        extra[f"{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        return {**extra, **state}

    rewritten(folder, add)


def in_float64(folder: Path) -> None:
    rewritten(folder, lambda state: {name: tensor.double() for name, tensor in state.items()})


def in_float16(folder: Path) -> None:
    rewritten(folder, lambda state: {name: tensor.half() for name, tensor in state.items()})


def in_two_types(folder: Path) -> None:
    def mix(state: State) -> State:
        return {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in state.items()}

    rewritten(folder, mix)


def every_tensor_another_type(folder: Path) -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    rewritten(folder, lambda state: {name: state[name].to(kinds[at % 4]) for at, name in enumerate(sorted(state))})


def a_head_apart(folder: Path) -> None:
    with_fields(folder, tie_word_embeddings=False)
    rewritten(folder, lambda state: {**state, HEAD: state[embedding(state)].flip(0)})


def a_tied_head_stored_too(folder: Path) -> None:
    with_fields(folder, tie_word_embeddings=True)
    rewritten(folder, lambda state: {**state, HEAD: state[embedding(state)].clone()})


def a_tied_head_that_differs(folder: Path) -> None:
    with_fields(folder, tie_word_embeddings=True)
    rewritten(folder, lambda state: {**state, HEAD: state[embedding(state)].flip(0)})


def a_tied_head_without_the_embedding(folder: Path) -> None:
    with_fields(folder, tie_word_embeddings=True)

    def move(state: State) -> State:
        return {HEAD if name == embedding(state) else name: state[name] for name in state if name != HEAD}

    rewritten(folder, move)


def saved_without_the_head(folder: Path) -> None:
    """As AutoModel saves: names without their first part."""
    with_fields(folder, tie_word_embeddings=True, architectures=None)
    rewritten(folder, lambda state: {name.partition(".")[2]: state[name] for name in state if name != HEAD})


def under_another_first_name(folder: Path) -> None:
    """The head's name of old GPT-NeoX; others do not know it, and it does not matter to them."""
    with_fields(folder, tie_word_embeddings=True)

    def rename(state: State) -> State:
        kept = {name: state[name] for name in state if name != HEAD}
        return {**kept, "embed_out.weight": state[embedding(state)].flip(0)}

    rewritten(folder, rename)


WAYS = (
    sharded, beside_older_shards, beside_an_index_of_nothing, named_in_the_config, shards_that_overlap,
    buffers_of_every_type, in_float64, in_float16, in_two_types, every_tensor_another_type, a_head_apart,
    a_tied_head_stored_too, a_tied_head_that_differs, a_tied_head_without_the_embedding, saved_without_the_head,
    under_another_first_name,
)  # fmt: skip


def our_model(folder: Path) -> rrt_edge.RecursiveForCausalLM:
    """The folder as it is read here, with nothing shared."""
    checkpoint = Checkpoint(folder)
    config = recursive_config(checkpoint.config, ConvertOptions(loops=1), None)
    made, model = Converted(checkpoint, config, checkpoint.dtype), rrt_edge.RecursiveForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(made.tensor(name))
    return model.eval()


@torch.no_grad()
def away(folder: Path) -> float:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return float((our_model(folder)(TEXT).logits - theirs(TEXT).logits).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_saved_in_every_way(tmp_path: Path, case: str) -> None:
    assert set(FAMILIES) == {name.partition("-")[0] for name in CASES}
    for way in WAYS:
        random_model(case, num_hidden_layers=2).save_pretrained(tmp_path / way.__name__)
        way(tmp_path / way.__name__)
        assert away(tmp_path / way.__name__) < 1e-4, way.__name__


@pytest.mark.slow
@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("way", [beside_older_shards, in_float64, in_two_types, a_tied_head_that_differs])
def test_a_bundle_is_proved_against_what_transformers_reads(
    tmp_path: Path, way: Callable[[Path], None], loops: int
) -> None:
    random_model("llama", num_hidden_layers=2).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    way(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "bundle", bits=32, loops=loops)
    assert verify(tmp_path / "bundle", source=tmp_path / "source").ok


def test_what_we_read_otherwise_than_transformers_is_noticed(tmp_path: Path) -> None:
    """The bundle of an older state of the same folder: both are read without error, and differ."""
    random_model("llama", num_hidden_layers=2).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    export(tmp_path / "source", tmp_path / "bundle", bits=32, loops=1)
    rewritten(tmp_path / "source", noise)
    assert not verify(tmp_path / "bundle", source=tmp_path / "source").ok


@pytest.mark.parametrize("way", [beside_older_shards, a_tied_head_that_differs])
def test_a_folder_that_says_two_things_gets_a_line(
    source: Path, tmp_path: Path, way: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    random_model("llama").save_pretrained(tmp_path)
    Checkpoint(tmp_path)
    assert not caplog.records
    way(tmp_path)
    with caplog.at_level(logging.WARNING):
        Checkpoint(tmp_path)
    assert len(caplog.records) == 1 and str(tmp_path) in caplog.records[0].getMessage()


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_in_words(tmp_path: Path, kind: torch.dtype) -> None:
    random_model("llama").save_pretrained(tmp_path / "source")
    name = "model.layers.1.mlp.up_proj.weight"

    def quantise(state: State) -> State:
        return {**state, name: (state[name] * 100).to(kind), f"{name}_scale_inv": torch.ones(1, 1)}

    rewritten(tmp_path / "source", quantise)
    with pytest.raises(
        rrt_edge.BadInputError, match=rf"{name} has numbers of the type .*; weights must be of float32, "
    ) as raised:
        rrt_edge.convert(tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["../a.safetensors", "model.bin", 7, "gone.safetensors"])
def test_a_file_named_in_the_config_is_beside_it(source: Path, tmp_path: Path, named: object) -> None:
    random_model("llama").save_pretrained(tmp_path)
    with_fields(tmp_path, transformers_weights=named)
    with pytest.raises(rrt_edge.BadInputError, match="transformers_weights"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("family", "stray"),
    [(family, "sliding_window") for family in ("llama-biases", "gemma", "gpt_neox", "olmo2", "granite")]
    + [(family, "use_sliding_window") for family in ("llama-biases", "mistral-full", "phi3")],
)
def test_a_field_that_transformers_does_not_read_means_nothing(tmp_path: Path, family: str, stray: str) -> None:
    """A window is that of the models whose class in transformers reads one; in others' configs it is a leftover."""
    random_model(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, stray: 5 if stray == "sliding_window" else True}))
    assert away(tmp_path) < 1e-4
