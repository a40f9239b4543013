"""Small random checkpoints made with transformers, and bundles of them; importing this skips where torch is missing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

import rrt_edge  # noqa: E402
from rrt_edge.exporters import export  # noqa: E402

CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501
TEXT = [
    f"The {noun} {verb} the {other}."
    for noun in ("cat", "dog", "fox")
    for verb in ("sees", "eats")
    for other in ("hen", "café", "日本")
]


def save_tokenizer(folder: Path, vocabulary: int, texts: list[str] = TEXT) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<pad>", "</s>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def tiny_config(**changes: Any) -> LlamaConfig:
    """A Llama with odd sizes, grouped queries and a head dimension that is not hidden / heads."""
    fields: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**{**fields, **changes})


def write_source(folder: Path, **changes: Any) -> None:
    """A random Llama with a tokenizer; keyword arguments change its config."""
    torch.manual_seed(0)
    config = tiny_config(**changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size)


def write_recursive(source: Path, folder: Path, loops: int = 3, rank: int = 4, **options: Any) -> None:
    """Convert the source; the gate gets random weights, so that tokens leave at different depths."""
    rrt_edge.convert(source, folder, loops=loops, rank=rank, **options)
    model = rrt_edge.RecursiveForCausalLM.from_pretrained(folder)
    if model.exit_gate is not None:
        torch.manual_seed(1)
        for parameter in model.exit_gate.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)


def write_endless(bundle: Path, context: int) -> None:
    """A bundle of so long a context."""
    with tempfile.TemporaryDirectory() as folder:
        write_source(Path(folder, "source"), max_position_embeddings=context)
        rrt_edge.convert(Path(folder, "source"), Path(folder, "recursive"), loops=3, rank=4)
        export(Path(folder, "recursive"), bundle, bits=32)


def write_prebuilt(bundle: Path) -> None:
    """The bundle of `tests/prebuilt`: as small as can be, since it lies in the repository."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        write_source(Path(folder, "source"), **sizes)
        write_recursive(Path(folder, "source"), Path(folder, "recursive"), rank=2)
        export(Path(folder, "recursive"), bundle, bits=32)


if __name__ == "__main__":
    write_prebuilt(Path(__file__).parent / "prebuilt")
