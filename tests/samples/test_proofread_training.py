"""The proofreader's trainer: what it computes, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLE = Path(__file__).parents[2] / "samples" / "proofread"
MODULES = ("base_model", "reduced_model", "threaded_training", "train_teacher")
PAIRS = [(f"He go to shop {number}.", f"He goes to shop {number}.") for number in range(40)]


@pytest.fixture(scope="module")
def sample(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return programs(*MODULES)


@pytest.fixture(scope="module")
def base(sample: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a vocabulary of bytes, as `base_model.py` leaves the real one."""
    folder = tmp_path_factory.mktemp("base")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = sample.base_model.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(alphabet),
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(base)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_the_template_adds_no_system_message(sample, tokenizer):
    example = sample.threaded_training.encode(tokenizer, "He go.", "He goes.")
    assert tokenizer.decode(example.prompt) == "<|im_start|>user\nHe go.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.reply) == "He goes.<|im_end|>"


def test_the_loss_is_that_of_transformers_on_the_replies(sample, base, tokenizer):
    examples = [sample.threaded_training.encode(tokenizer, *pair) for pair in PAIRS[:7]]
    summed = replies = 0.0
    model = AutoModelForCausalLM.from_pretrained(base)
    for example in examples:
        ids = torch.tensor([example.prompt + example.reply])
        labels = torch.tensor([[-100] * len(example.prompt) + example.reply])
        summed += model(input_ids=ids, labels=labels).loss.item() * len(example.reply)
        replies += len(example.reply)
    for threads in (1, 2, 3):
        trainer = sample.threaded_training.Trainer(base, threads)
        assert trainer.loss(examples, size=3) == pytest.approx(summed / replies, rel=1e-5)
        assert trainer.step(examples, 0.0) == pytest.approx(summed / replies, rel=1e-5)


def test_a_step_is_that_of_one_model_and_one_optimizer(sample, base, tokenizer):
    examples = [sample.threaded_training.encode(tokenizer, *pair) for pair in PAIRS[:5]]
    plain = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    trainer = sample.threaded_training.Trainer(base, 2)
    replies = sum(len(example.reply) for example in examples)
    for _ in range(3):
        for example in examples:
            labels = torch.tensor([[-100] * len(example.prompt) + example.reply])
            loss = plain(input_ids=torch.tensor([example.prompt + example.reply]), labels=labels).loss
            (loss * len(example.reply) / replies).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trainer.step(examples, 1e-3)
    for own, other in zip(trainer.models[0].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-3)
    for own, other in zip(trainer.models[0].parameters(), trainer.models[1].parameters(), strict=True):
        assert own.data_ptr() == other.data_ptr()


def test_portions_hold_every_text_and_few_positions(sample, tokenizer, monkeypatch):
    monkeypatch.setattr(sample.threaded_training, "POSITIONS", 300)
    texts = ["He go." * count for count in (1, 2, 3, 4, 5, 40)]
    ordered = [sample.threaded_training.encode(tokenizer, text, text) for text in texts]
    parts = list(sample.threaded_training.portions(ordered))
    assert [example for part in parts for example in part] == ordered
    assert all(len(part) == 1 or len(part) * len(part[-1]) <= 300 for part in parts)
    assert len(parts) < len(ordered)


def test_batches_hold_each_text_once_before_any_twice(sample, tokenizer):
    training = sample.threaded_training
    examples = [training.encode(tokenizer, *pair) for pair in PAIRS]
    once = training.batches_of(examples, 4, sum(map(len, examples)), seed=1)
    seen = sorted(tokenizer.decode(example.reply) for batch in once for example in batch)
    assert seen == sorted(tokenizer.decode(example.reply) for example in examples)
    assert once == training.batches_of(examples, 4, sum(map(len, examples)), seed=1)
    assert once != training.batches_of(examples, 4, sum(map(len, examples)), seed=2)


def test_a_stopped_training_goes_on_to_the_same_weights(sample, base, tmp_path, monkeypatch):
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text, "correct": right}) + "\n" for text, right in PAIRS), "utf-8")

    def train(out: Path, stops: list[bool]) -> None:
        options = ["--tokens", "3000", "--batch", "4", "--lr", "1e-3", "--warmup", "2", "--log", f"{out}.jsonl"]
        monkeypatch.setattr(sys, "argv", ["train_teacher.py", str(base), str(data), str(out), *options])
        monkeypatch.setattr(sample.train_teacher, "stopping", lambda: chain(stops, repeat(False)))
        sample.train_teacher.main()

    monkeypatch.setattr(sample.train_teacher, "LOG_EVERY", 1)
    threads = torch.get_num_threads()
    try:
        train(tmp_path / "whole", [])
        train(tmp_path / "broken", [False, False, False, True])
        assert not (tmp_path / "broken").exists()
        train(tmp_path / "broken", [])
    finally:
        torch.set_num_threads(threads)
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert any(not torch.equal(whole[name], start) for name, start in weights(base).items())

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name).read_text("utf-8").splitlines()]

    assert losses("whole.jsonl") == losses("broken.jsonl")
    assert len(losses("whole.jsonl")) > 4


def test_the_layer_goes_without_which_the_loss_is_lowest(
    sample: SimpleNamespace,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"text": text, "correct": right}) + "\n" for text, right in PAIRS[:8]))
    monkeypatch.setattr(sys, "argv", ["", str(base), str(data), str(tmp_path / "out"), "--layers", "1"])
    sample.reduced_model.main()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 1
    examples = [
        sample.threaded_training.encode(PreTrainedTokenizerFast.from_pretrained(base), text, right)
        for text, right in PAIRS[:8]
    ]
    losses = []
    for dropped in range(2):
        model = LlamaForCausalLM.from_pretrained(base)
        del model.model.layers[dropped]
        model.model.layers[0].self_attn.layer_idx = 0
        losses.append(sample.reduced_model.loss_of(model.eval(), examples, False))
    made = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert sample.reduced_model.loss_of(made, examples, False) == pytest.approx(min(losses), rel=1e-4)
    assert f"loss {min(losses):.4f}" in capsys.readouterr().out
