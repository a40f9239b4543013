"""A bundle's tokenizer gives transformers' ids, however a checkpoint's folder says what they are."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

import rrt_edge
from rrt_edge.exporters.tokenizer_files import CHATS, TEXTS, TOOLS, check_tokenizer_of, write_tokenizer
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
    assert chat.render(CHATS[0], tools=[]) == "tools"
    assert all(path.is_file() for path in (tmp_path / "bundle").iterdir())


def test_templates_in_a_folder_of_their_own_are_taken(tmp_path: Path) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    save(source, byte_level(MARKS))
    (source / "chat_template.jinja").write_text(CHATML)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | tojson }}" + CHATML)
    bundle.mkdir()
    write_tokenizer(source, bundle)
    chat, theirs = ChatTemplate.from_folder(bundle), AutoTokenizer.from_pretrained(source)
    assert chat is not None and chat.takes_tools
    for tools in (None, [], TOOLS):
        expected = theirs.apply_chat_template(CHATS[2], tools=tools, add_generation_prompt=True, tokenize=False)
        assert chat.render(CHATS[2], tools=tools) == expected
    assert all(path.is_file() for path in bundle.iterdir())


def test_a_template_that_takes_parts_alone_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    save(source, byte_level(MARKS))
    template = CHATML.replace("{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}")
    (source / "chat_template.jinja").write_text(template)
    bundle.mkdir()
    with caplog.at_level(logging.WARNING):
        write_tokenizer(source, bundle)
    assert (
        f"{source / 'chat_template.jinja'}: the chat template leaves out what the user says where that is a text"
        in (caplog.text)
    )
    chat, theirs = ChatTemplate.from_folder(bundle), AutoTokenizer.from_pretrained(source)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    expected = theirs.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
    assert chat is not None and "Hi" in expected
    assert chat.render([{"role": "user", "content": "Hi"}]) == chat.render(parts) == expected


def test_a_template_that_loses_what_users_say_is_refused(tmp_path: Path) -> None:
    save(tmp_path, byte_level(MARKS), chat_template="{% for m in messages %}{{ m['role'] }}{% endfor %}")
    message = r"tokenizer_config\.json: the chat template leaves out what the user says, in every form"
    with pytest.raises(rrt_edge.BadInputError, match=message):
        write_tokenizer(tmp_path, tmp_path)


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


def sentencepiece_model(kind: str) -> bytes:
    """A tokenizer.model as SentencePiece writes it: a protocol buffer of scored pieces."""
    from transformers.convert_slow_tokenizer import import_protobuf  # two copies of the format would not get along

    format = import_protobuf()
    model = format.ModelProto()
    model.trainer_spec.model_type = {"unigram": 1, "bpe": 2}[kind]
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = True, False
    words = [
        "\u2581he",
        "ll",
        "\u2581hell",
        "\u2581hello",
        "\u2581w",
        "or",
        "\u2581wor",
        "ld",
        "\u2581world",
        "\u2581h",
    ]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, -1.0 - rank, 1) for rank, word in enumerate(words)]
    pieces += [(letter, -50.0 - rank, 1) for rank, letter in enumerate("\u2581abcdefghijklmnopqrstuvwxyz")]
    for piece, score, of_type in pieces:
        model.pieces.add(piece=piece, score=score, type=of_type)
    content: bytes = model.SerializeToString()
    return content


def tiktoken_ranks() -> bytes:
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" w", b"or", b"ld", b" world"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


ALONE = [  # a tokenizer's file without a tokenizer.json beside it, its class, and the extra that reads it
    ("tokenizer.model", sentencepiece_model("bpe"), "LlamaTokenizer", "sentencepiece"),
    ("tokenizer.model", sentencepiece_model("bpe"), "GemmaTokenizer", "sentencepiece"),
    ("spiece.model", sentencepiece_model("unigram"), "T5Tokenizer", "sentencepiece"),
    ("tokenizer.model", tiktoken_ranks(), "PreTrainedTokenizerFast", "tiktoken"),
    ("tiktoken.model", tiktoken_ranks(), "PreTrainedTokenizerFast", "tiktoken"),
]


@pytest.mark.parametrize("name, content, kind, extra", ALONE, ids=[f"{row[0]}-{row[2]}" for row in ALONE])
def test_a_model_file_alone_is_read(tmp_path: Path, name: str, content: bytes, kind: str, extra: str) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    source.mkdir()
    bundle.mkdir()
    (source / name).write_bytes(content)
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write_tokenizer(source, bundle)
    theirs = AutoTokenizer.from_pretrained(source)
    assert len(theirs("hello world")["input_ids"]) < 8
    for text in [*TEXTS, "hello world"]:
        assert read_tokenizer(bundle).encode(text).ids == theirs(text)["input_ids"]


@pytest.mark.parametrize("name, content, kind, extra", ALONE, ids=[f"{row[0]}-{row[2]}" for row in ALONE])
def test_a_missing_extra_is_named(tmp_path: Path, name: str, content: bytes, kind: str, extra: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    program = (
        "import importlib.util, sys\n"
        f"sys.modules[{extra!r}] = None\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name == {extra!r} else found(name, package)\n"
        "from pathlib import Path\n"
        "from rrt_edge.exporters.tokenizer_files import open_tokenizer\n"
        "open_tokenizer(Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert f"pip install 'rrt-edge[{extra}]'" in done.stderr.splitlines()[-1]
