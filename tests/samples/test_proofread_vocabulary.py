"""The proofreader's smaller vocabulary: the same cuts and logits where its tokens suffice, finer cuts elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLE = Path(__file__).parents[2] / "samples" / "proofread"
TEXTS = [f"The {who} {what} the {thing}." for who in ("hen", "child", "neighbour") for what in ("sees", "mends")
         for thing in ("garden", "weather", "window")]  # fmt: skip
OTHER = "Quantum chromodynamics, naïve 👋 and the gardener's window-dressing."
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def sample(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return programs("base_model", "smaller_vocabulary")


@pytest.fixture(scope="module")
def folders(sample: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of which the texts use a part of the vocabulary, and what the script makes of it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    readme = (SAMPLE / "README.md").read_text("utf-8")
    whole.train_from_iterator([readme, *TEXTS, "user assistant"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = sample.base_model.CHAT_TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=whole.get_vocab_size(),
        **sizes,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text, "correct": text}) + "\n" for text in TEXTS), "utf-8")
    command = [sys.executable, str(SAMPLE / "smaller_vocabulary.py"), "--frequent", "0"]
    done = subprocess.run([*command, folder / "whole", data, folder / "small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "whole", folder / "small"


def test_texts_that_it_was_made_for_are_cut_and_continued_as_before(folders: tuple[Path, Path]) -> None:
    before, after = map(AutoTokenizer.from_pretrained, folders)
    large, small = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    assert small.config.vocab_size == len(after) < len(before) == large.config.vocab_size
    rows = [before.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(range(len(after)))]
    for text in TEXTS:
        chat = [{"role": "user", "content": text}]
        ids, own = (
            tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            for tokenizer in (before, after)
        )
        assert [rows[id] for id in own] == ids
        with torch.no_grad():
            expected = large(torch.tensor([ids])).logits[..., rows]
            torch.testing.assert_close(small(torch.tensor([own])).logits, expected)


def test_other_texts_are_cut_finer_and_not_lost(folders: tuple[Path, Path]) -> None:
    before, after = map(AutoTokenizer.from_pretrained, folders)
    assert len(after.encode(OTHER)) > len(before.encode(OTHER))
    assert after.decode(after.encode(OTHER)) == OTHER
    assert (after.eos_token_id, after.pad_token_id) == (2, 2)
    assert AutoModelForCausalLM.from_pretrained(folders[1]).generation_config.eos_token_id == after.eos_token_id


def test_what_a_token_is_merged_from(sample: SimpleNamespace) -> None:
    merges = {("a", "b"): 0, ("c", "d"): 1, ("ab", "cd"): 2, ("b", "c"): 3}
    assert sample.smaller_vocabulary.derivation("abcd", merges) == {"a", "b", "c", "d", "ab", "cd", "abcd"}
    assert sample.smaller_vocabulary.derivation("bc", merges) == {"b", "c", "bc"}
    assert sample.smaller_vocabulary.derivation("xa", merges) == {"x", "a"}
