"""Small random models, made once: the source with transformers, its recursive form, and bundles of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["RRT_EDGE_DEVICE"] = "cpu"  # whatever else this machine has; tests of devices name theirs
os.environ["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] = "1"  # read when the provider's library is first loaded
# `python -m pytest` puts the checkout first, where rrt_edge lacks the two folders that are mapped into it.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent.parent]

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.runtime.decoding.sampler import Sampler

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 65536  # of `endless`
PARTS = ("pyproject.toml", "README.md", "LICENSE", "rrt_edge", "runtime", "exporters", "samples/web_chat")
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501
TEXT = [
    f"The {noun} {verb} the {other}."
    for noun in ("cat", "dog", "fox")
    for verb in ("sees", "eats")
    for other in ("hen", "café", "日本")
]


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<pad>", "</s>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
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


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random Llama with a tokenizer; keyword arguments change its config."""

    def make(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("source")
        torch.manual_seed(0)
        config = tiny_config(**changes)
        LlamaForCausalLM(config).save_pretrained(folder)
        save_tokenizer(folder, config.vocab_size)
        return folder

    return make


@pytest.fixture(scope="session")
def source(make_source: Callable[..., Path]) -> Path:
    return make_source()


@pytest.fixture(scope="session")
def make_recursive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Convert the source; the gate gets random weights, so that tokens leave at different depths."""

    def make(loops: int = 3, rank: int = 4, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("recursive") / "checkpoint"
        rrt_edge.convert(source, folder, loops=loops, rank=rank, **options)
        model = rrt_edge.RecursiveForCausalLM.from_pretrained(folder)
        if model.exit_gate is not None:
            torch.manual_seed(1)
            for parameter in model.exit_gate.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def recursive(make_recursive: Callable[..., Path]) -> Path:
    """Three loops, rank 4."""
    return make_recursive()


@pytest.fixture(scope="session")
def make_bundle(make_recursive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a recursive checkpoint of so many loops."""

    def make(loops: int = 3, bits: int = 32, rank: int = 4, kv_bits: int = 32) -> Path:
        bundle = tmp_path_factory.mktemp("bundle") / "bundle"
        export(make_recursive(loops=loops, rank=rank), bundle, bits=bits, kv_bits=kv_bits)
        return bundle

    return make


@pytest.fixture(scope="session")
def bundle(recursive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 bundle of `recursive`."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export(recursive, folder, bits=32)
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained demo model."""
    bundle = tmp_path_factory.mktemp("demo") / "pydoc"
    rrt_edge.export(ROOT / "samples" / "pydoc" / "recursive", bundle)
    return bundle


@pytest.fixture(scope="session")
def endless(make_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose replies nothing ends but a context of 65,536 tokens (`CONTEXT`)."""
    folder = tmp_path_factory.mktemp("endless")
    rrt_edge.convert(make_source(max_position_embeddings=CONTEXT), folder / "recursive", loops=3, rank=4)
    export(folder / "recursive", folder / "endless", bits=32)
    manifest = json.loads((folder / "endless" / "manifest.json").read_text("utf-8"))
    manifest["eos_token_ids"] = []
    (folder / "endless" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder / "endless"


@pytest.fixture
def picked(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[np.ndarray]]:
    """The logits that each sampler picks from, by its id."""
    seen: dict[int, list[np.ndarray]] = {}
    pick = Sampler.pick

    def watch(self: Sampler, logits: np.ndarray, history: list[int]) -> int:
        seen.setdefault(id(self), []).append(logits.copy())
        return pick(self, logits, history)

    monkeypatch.setattr(Sampler, "pick", watch)
    return seen


def checkout() -> list[Path]:
    """What the wheel is made of and every other Python file, relative to the root; what git ignores stays out."""
    if shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS, "*.py"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
        files = [Path(name) for name in listed if name and (ROOT / name).is_file()]
        if files:
            return files
    found = [path for part in PARTS for path in (ROOT / part, *(ROOT / part).rglob("*"))]
    return [path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of the checkout's files, without leftovers of earlier builds."""
    tree = tmp_path_factory.mktemp("tree")
    for path in checkout():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tree / path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    subprocess.run(command, check=True, capture_output=True, cwd=tree)
    (built,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The largest errors of the families' graphs and models, where their tests ran."""
    errors: dict[str, dict[str, float]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, found in report.user_properties if report.when == "call" else ():
            if name == "family_matrix":
                case, column, error = found
                errors.setdefault(case, {})[column] = error
    if not errors:
        return
    columns = list(dict.fromkeys(column for row in errors.values() for column in row))
    terminalreporter.section("families: largest logit error (must be below 1e-4)")
    terminalreporter.write_line(f"{'':16}" + "".join(f"{column:>12}" for column in columns))
    for case, row in errors.items():
        cells = [f"{row[column]:12.1e}" if column in row else f"{'-':>12}" for column in columns]
        terminalreporter.write_line(f"{case:16}" + "".join(cells))
