"""GGUF files mean what the models they were written from mean, and what transformers reads of them."""

from __future__ import annotations

import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import rrt_edge
from rrt_edge.conversion import gguf_file
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.gguf_header import TYPES, read_header
from rrt_edge.exporters import export, verify
from rrt_edge.runtime.decoding.default_sampling import default_sampling
from tests.conversion.test_saved_ways import TEXT, our_model
from tests.families import random_model
from tests.gguf_files import write_gguf

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
SCALAR = {"query_pre_attn_scalar": 16}  # what a head's size is; llama.cpp has no field for it
GEMMA3_ROPE = {"full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
               "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama-biases", {"mlp_bias": False, "attention_bias": False, "rope_parameters": LLAMA3}),
    "llama-untied": ("llama-biases", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama-yarn": ("llama-biases", {"attention_bias": False, "mlp_bias": False, "rope_parameters": YARN}),
    "mistral": ("mistral-full", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", SCALAR),
    "gemma3": ("gemma3", {**SCALAR, "sliding_window_pattern": 6, "rope_parameters": GEMMA3_ROPE}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-serial": ("gpt_neox-serial", {"attention_bias": True, "hidden_act": "gelu"}),
    "phi3": ("phi3", {}),
    "phi3-long": ("phi3-long", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    out: torch.Tensor = model.eval()(TEXT).logits
    return out


@pytest.mark.slow
@pytest.mark.parametrize("made", MADE)
def test_a_file_means_the_model_it_was_written_from(tmp_path: Path, made: str) -> None:
    case, changes = MADE[made]
    model = random_model(case, **changes)
    write_gguf(model, tmp_path / "model.gguf")
    assert (logits(our_model(tmp_path / "model.gguf")) - logits(model)).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, _, _ in TYPES.values() if not kind.startswith(("IQ", "F64", "BF16"))])
def test_every_type_is_what_the_package_dequantises(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "ROWS", 7)  # so that there are several pieces, the last of them smaller
    write_gguf(random_model("qwen2", **WIDE), tmp_path / "model.gguf", kind)
    checkpoint = Checkpoint(tmp_path / "model.gguf")
    for name, own in (("layers.0.mlp.up_proj", "blk.0.ffn_up"), ("embed_tokens", "token_embd")):
        stored = next(t for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == f"{own}.weight")
        assert stored.tensor_type.name == kind
        theirs = dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(checkpoint.tensor(f"model.{name}.weight").numpy(), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_bundles_of_quantised_files_are_what_transformers_reads(tmp_path: Path, family: str, kind: str) -> None:
    changes = {"gemma2": SCALAR, "llama": {"tie_word_embeddings": False, "rope_parameters": None}}.get(family, {})
    write_gguf(random_model(family, **changes, **WIDE), tmp_path / "model.gguf", kind)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", config=Checkpoint(tmp_path / "model.gguf").config, dtype=torch.float32
    )
    assert (logits(our_model(tmp_path / "model.gguf")) - logits(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("loops", [1, 2])
def test_a_file_is_exported_and_proved(tmp_path: Path, loops: int) -> None:
    write_gguf(random_model("llama", rope_parameters=None, num_hidden_layers=2), tmp_path / "model.gguf")
    export(tmp_path / "model.gguf", tmp_path / "bundle", bits=32, loops=loops)
    assert verify(tmp_path / "bundle", source=tmp_path / "model.gguf").ok
    write_gguf(random_model("qwen3", num_hidden_layers=2), tmp_path / "other.gguf")
    assert not verify(tmp_path / "bundle", source=tmp_path / "other.gguf").ok


def test_a_file_is_converted_with_its_tokenizer_and_settings(tmp_path: Path) -> None:
    settings = {"general.sampling.temp": 0.7, "tokenizer.ggml.eot_token_id": 3}
    write_gguf(random_model("qwen2"), tmp_path / "model.gguf", **settings)
    rrt_edge.convert(tmp_path / "model.gguf", tmp_path / "out", loops=3, rank=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("abc de 12 é")["input_ids"]) == "abc de 12 é"
    assert tokenizer.eos_token == "</s>" and "messages" in tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [1, 3]
    assert model.generation_config.temperature == pytest.approx(0.7)
    assert model.generation_config.do_sample and model.generation_config.top_k == 0
    assert model.config.source == "model.gguf"


def test_llama_cpps_words_for_greedy_and_for_no_cut_are_understood(tmp_path: Path) -> None:
    settings = {"general.sampling.temp": 0.0, "general.sampling.top_k": -1, "general.sampling.penalty_repeat": 1.25}
    write_gguf(random_model("qwen2"), tmp_path / "model.gguf", **settings)
    with closing(Checkpoint(tmp_path / "model.gguf")) as checkpoint:
        sampling = default_sampling(checkpoint.folder)
    assert (sampling.get("temperature", 0), sampling["repetition_penalty"]) == (0, 1.25)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),  # by llama.cpp's regular expressions
    [
        ("smollm", "x 123", ["x", "Ġ", "1", "2", "3"]),
        ("llama-bpe", "x 12345", ["x", "Ġ", "123", "45"]),
        ("qwen2", "x 123", ["x", "Ġ", "1", "2", "3"]),
        ("gpt-2", "x 123", ["x", "Ġ123"]),
    ],
)
def test_text_is_cut_where_llama_cpp_cuts_it(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    write_gguf(random_model("mistral-full"), tmp_path / "model.gguf", **{"tokenizer.ggml.pre": pre})
    checkpoint = Checkpoint(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in cut] == pieces


@pytest.mark.parametrize(
    ("prefixed", "text", "pieces"),  # by llama.cpp: the best score first, a space in front and behind special tokens
    [
        (True, "ab", ["<s>", "▁ab"]),
        (True, "abc", ["<s>", "▁ab", "c"]),  # "ab" is joined before "bc"
        (True, "a bc", ["<s>", "▁", "a", "▁", "bc"]),
        (True, " a", ["<s>", "▁▁", "a"]),
        (True, "é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
        (True, "ab</s>ab", ["<s>", "▁ab", "</s>", "▁ab"]),
        (False, "ab ab", ["<s>", "ab", "▁ab"]),
        (False, "ab</s>ab", ["<s>", "ab", "</s>", "ab"]),
    ],
)
def test_pieces_are_joined_as_llama_cpp_joins_them(
    tmp_path: Path, prefixed: bool, text: str, pieces: list[str]
) -> None:
    metadata = {} if prefixed else {"tokenizer.ggml.add_space_prefix": False}
    write_gguf(random_model("mistral-full"), tmp_path / "model.gguf", pieces=True, **metadata)
    checkpoint = Checkpoint(tmp_path / "model.gguf")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("</s>", " " if prefixed else "")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, r"general\.architecture 'mamba' is not read; read are gemma, "),
        ({"qwen2.block_count": 0}, "num_hidden_layers 0: must be a whole number from 1 to 10000"),
        ({"qwen2.embedding_length": 76}, r"embed_tokens\.weight is 300 x 72, but .* makes it 300 x 76"),
        ({"qwen2.attention.head_count_kv": 5}, "num_key_value_heads 5 does not divide"),
        ({"qwen2.rope.scaling.type": "other", "qwen2.rope.scaling.factor": 2.0}, "scaling.type 'other' is not read"),
        ({"tokenizer.ggml.pre": "new"}, r"tokenizer\.ggml\.pre 'new' is not read"),
        ({"tokenizer.ggml.model": "rwkv"}, r"tokenizer\.ggml\.model 'rwkv' is not read"),
        ({"split.count": 2}, "is one part of a model in several files"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line_that_names_the_field(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    write_gguf(random_model("qwen2", num_hidden_layers=2), tmp_path / "model.gguf", **metadata)
    with pytest.raises(rrt_edge.BadInputError, match=message) as raised:
        rrt_edge.convert(tmp_path / "model.gguf", tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    write_gguf(random_model("qwen2", num_hidden_layers=2), tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    rng = np.random.default_rng(0)
    header = len(whole) - sum(
        t.row_bytes * np.prod(t.shape[:-1]) for t in read_header(tmp_path / "model.gguf").tensors.values()
    )
    cuts = [whole[: int(at)] for at in rng.integers(4, len(whole), 40)]
    counts = [whole[:8] + struct.pack("<QQ", *pair) + whole[24:] for pair in [(2**63, 1), (1, 2**63), (10**6, 10**6)]]
    for damaged in [*cuts, *counts, whole[:4] + struct.pack("<I", 9) + whole[8:], b"GGUF", b"PK\3\4" + whole[4:]]:
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        with pytest.raises(rrt_edge.BadInputError, match=r"damaged\.gguf: "):
            read_header(tmp_path / "damaged.gguf")
    for at in rng.integers(4, int(header), 200):  # a byte changed: read, or refused in words
        changed = bytearray(whole)
        changed[int(at)] ^= int(rng.integers(1, 256))
        (tmp_path / "damaged.gguf").write_bytes(bytes(changed))
        try:
            Checkpoint(tmp_path / "damaged.gguf")
        except rrt_edge.BadInputError as error:
            assert "damaged.gguf" in str(error)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(rrt_edge.BadInputError, match=r"text\.gguf: is a file but no GGUF"):
        export(tmp_path / "text.gguf", tmp_path / "bundle")
