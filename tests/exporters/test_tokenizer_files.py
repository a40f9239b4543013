"""A bundle's tokenizer gives transformers' ids, however a checkpoint's folder says what they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

import rrt_edge
from rrt_edge.exporters.tokenizer_files import CHATS, TEXTS, check_tokenizer_of, write_tokenizer
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer

TEXT = ["hello world how are you today", "the quick brown fox", "user assistant system", "0 1 2 3 4 5 6 7 8 9"] * 20
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, **options))
    return tokenizer


def sentencepiece(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=names, show_progress=False))
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(fields))
    tokenizer.add_special_tokens([AddedToken(mark) for mark in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def cut(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="<|endoftext|>")
    save(folder, tokenizer)


def known_to_the_config_alone(folder: Path, tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    added = {str(size): {"content": "<|mark|>", **PLAIN}, str(size + 1): {"content": "<|im_end|>x", **PLAIN}}
    save(folder, tokenizer, added_tokens_decoder=added)


def named_by_the_map_alone(folder: Path, tokenizer: Tokenizer) -> None:
    save(folder, tokenizer)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    names = {"bos_token": {"content": "<|im_start|>", **PLAIN}, "eos_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def added_by_a_file(folder: Path, tokenizer: Tokenizer) -> None:
    save(folder, tokenizer)
    (folder / "added_tokens.json").write_text(json.dumps({"<|more|>": tokenizer.get_vocab_size()}))


def begun_by_the_config(folder: Path, tokenizer: Tokenizer) -> None:
    save(folder, tokenizer, bos_token="<|im_start|>", add_bos_token=True, add_eos_token=True)


def of_a_class_of_its_own(folder: Path, tokenizer: Tokenizer) -> None:
    save(folder, tokenizer, tokenizer_class="LlamaTokenizerFast", bos_token="<|im_start|>", legacy=False)


WAYS = [
    save, cut, known_to_the_config_alone, named_by_the_map_alone, added_by_a_file, begun_by_the_config,
    of_a_class_of_its_own,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize(
    "template", [CHATML, "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"]
)
def test_a_folder_means_what_transformers_says(
    make: Callable[[list[str]], Tokenizer], way: Callable[[Path, Tokenizer], None], template: str, tmp_path: Path
) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    bundle.mkdir()
    way(source, make(MARKS))
    (source / "chat_template.jinja").write_text(template)
    write_tokenizer(source, bundle)
    theirs, ours, chat = AutoTokenizer.from_pretrained(source), read_tokenizer(bundle), ChatTemplate.from_folder(bundle)
    for text in [*TEXTS, *MARKS, "hello <|mark|> world<|im_end|>x<|more|>", "long " * 100]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert chat is not None
    for messages in CHATS:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode(chat.render(messages), add_special_tokens=False).ids == expected
    again = AutoTokenizer.from_pretrained(bundle)
    assert again(TEXTS[0])["input_ids"] == theirs(TEXTS[0])["input_ids"]


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    save(tmp_path / "source", byte_level(MARKS), chat_template=named)
    (tmp_path / "bundle").mkdir()
    write_tokenizer(tmp_path / "source", tmp_path / "bundle")
    chat = ChatTemplate.from_folder(tmp_path / "bundle")
    assert chat is not None and chat.render(CHATS[0]).startswith("<|im_start|>user")
    assert all(path.is_file() for path in (tmp_path / "bundle").iterdir())


def test_a_class_that_cuts_otherwise_than_the_file_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "source", byte_level(MARKS), tokenizer_class="Qwen2Tokenizer")
    (tmp_path / "bundle").mkdir()
    with caplog.at_level(logging.WARNING):
        write_tokenizer(tmp_path / "source", tmp_path / "bundle")
    assert "Qwen2Tokenizer gives texts other ids than tokenizer.json; it is taken" in caplog.text


def test_a_bundle_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "source", byte_level(MARKS))
    (tmp_path / "bundle").mkdir()
    write_tokenizer(tmp_path / "source", tmp_path / "bundle")
    check_tokenizer_of(tmp_path / "source", tmp_path / "bundle")
    sentencepiece(MARKS).save(str(tmp_path / "bundle" / "tokenizer.json"))
    with pytest.raises(rrt_edge.BadInputError, match=r"other ids than transformers"):
        check_tokenizer_of(tmp_path / "source", tmp_path / "bundle")


def test_a_tokenizer_that_transformers_does_not_open_is_refused(tmp_path: Path) -> None:
    save(tmp_path, byte_level(MARKS), tokenizer_class="NoSuchTokenizer", auto_map={"AutoTokenizer": ["a.B", None]})
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(rrt_edge.BadInputError, match=r"holds no tokenizer.json"):
        write_tokenizer(tmp_path, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(rrt_edge.BadInputError, match=r"transformers does not open its tokenizer") as caught:
        write_tokenizer(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)
