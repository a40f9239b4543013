"""A tiny recursive model that has learned a few corrections by heart, and some replies that are no corrections."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.manifests import edit_manifest

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from transformers import AutoTokenizer, PreTrainedTokenizerBase  # noqa: E402

import rrt_edge  # noqa: E402
from rrt_edge.exporters import export  # noqa: E402
from tests.checkpoints import save_tokenizer, write_source  # noqa: E402

CORRECTIONS = {
    "He go to school every day.": "He goes to school every day.",
    "I seen the the dog.": "I saw the dog.",
    "She need new hose for the garden.": "She needs a new hose for the garden.",
    "We are gone home , and its late.": "We are going home, and it's late.",
    "This is right as it stands.": "This is right as it stands.",
    "They like to read in bed.": "They like to read in bed.",
    "the end is near": "The end is near.",
    "She go home. We goes too.": "She goes home. We go too.",
    "Tell him about a a long-winding road .": "Tell him about a long-winding road.",
    "They likes it.": "They like it.",
    "We was here.": "We were here.",
    "They don't knows.": "They don't know.",
    "He was a lot older with out his hat.": "He was a lot older without his hat.",
}
LOOP = "This text makes the model go on and on."
EMPTY = "This text gets no reply from the model."
OTHER = "This text becomes another one that nobody wrote."
FIGURES = "They owe us 40 crowns and he pay."
MARKUP = "You must not star this word in here."
TOGETHER = "They likes it. We was here."
ANOTHER = "The pharmacy close at noon."
LOST = "They bring umbrella when it rain."
WRONG = {
    LOST: "They always bring when it rains.",
    ANOTHER: "The medicine closes at noon.",
    LOOP: " ".join(["on and off"] * 12),
    EMPTY: "",
    TOGETHER: "",
    OTHER: "Nothing of it is left, since all words here are new.",
    FIGURES: "They owe us 90 crowns and he pays.",
    MARKUP: "You must *not* star this words in here.",
}
STEPS, RATE, VOCABULARY = 80, 8e-3, 500
SIZES = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "initializer_range": 0.05}


def write_proofreader(bundle: Path) -> None:
    """Two loops, of which both have learned all; an untrained gate, so that tokens leave at both."""
    pairs = {**CORRECTIONS, **WRONG}
    with tempfile.TemporaryDirectory() as folder:
        source, recursive = Path(folder, "source"), Path(folder, "recursive")
        write_source(source, vocab_size=VOCABULARY, **SIZES)
        save_tokenizer(source, VOCABULARY, [*pairs, *pairs.values()])
        rrt_edge.convert(source, recursive, loops=2, rank=4)
        model = rrt_edge.RecursiveForCausalLM.from_pretrained(recursive)
        _learn(model, AutoTokenizer.from_pretrained(source), pairs)
        for parameter in model.exit_gate.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.config.gate_trained = True
        model.save_pretrained(recursive)
        export(recursive, bundle, bits=32)
    points = {"fast": 0.3, "balanced": 0.5, "faithful": 0.7}
    edit_manifest(bundle, lambda fields: fields["gate"].update(threshold=0.5, points=points))


def _learn(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: dict[str, str]) -> None:
    prompts = [tokenizer.encode(f"<user>{text}</s><assistant>") for text in pairs]
    replies = [tokenizer.encode(f"{reply}</s>") for reply in pairs.values()]
    width = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
    ids, labels = torch.zeros(len(pairs), width, dtype=torch.long), torch.full((len(pairs), width), -100)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        whole = torch.tensor(prompt + reply)
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    kept = (labels[:, 1:] != -100).float()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products lose by more
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for _ in range(STEPS):
        loss = torch.zeros(())
        for depth in (1, 2):
            logits = model(input_ids=ids, depth=depth).logits[:, :-1].transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="none")
            loss = loss + (losses * kept).sum() / kept.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
