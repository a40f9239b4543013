"""The tokenizer of a bundle: what transformers makes of the source's files, written as the runtime reads it."""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.template_files import read_sources
from rrt_edge.runtime.bundle.template_probes import CALL_ID, LOSSES
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.errors import BadInputError, in_words
from rrt_edge.runtime.system.options import shown

FILE = "tokenizer.json"
READ = (FILE, "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
READERS = {"sentencepiece": ("sentencepiece", "google", "google.protobuf"), "tiktoken": ("tiktoken",)}
RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n?")  # a line of a tiktoken file: a token in base 64, and its rank
WRITTEN = (FILE, "tokenizer_config.json", "chat_template.jinja")
TEXTS = (  # of many scripts; odd spaces, code, numbers, characters that normalisation changes
    "The quick brown fox jumps over the lazy dog, doesn't it?", " leading and trailing  spaces \t", "",
    "\n\n a\r\nb\n",
    "Größe, naïve, Ångström, cafe\u0301, ﬁ, ½, Ⅷ", "Привет, мир! Καλημέρα κόσμε.",
    "你好\uff0c世界。今日はいい天気ですね。",
    "안녕하세요 שלום עולם مرحبا بالعالم", "नमस्ते दुनिया สวัสดีชาวโลก", "👩\u200d👩\u200d👧 🏳️\u200d🌈 😀😀",
    "def f(x):\n    return {'a': x ** 2}  # -> 3.14e-5\n", "1234567890 1,000,000 0x1F 2026-11-26",
    "https://example.org/a?b=c&d=%20#e", "\u200b\ufeff\u00a0\u2028\x00\x7f", "ALL CAPS camelCase snake_case",
)  # fmt: skip
CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hello, who are you?"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 2 + 2\n"}],
)
AGE = {"name": "age", "arguments": {"of": "Ann"}}
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "How old "}, {"type": "text", "text": "is Ann?"}]},
    {"role": "assistant", "content": "", "tool_calls": [{"id": CALL_ID, "type": "function", "function": AGE}]},
    {"role": "tool", "tool_call_id": CALL_ID, "name": "age", "content": '{"years": 9}'},
]
PARAMETERS = {"type": "object", "properties": {"of": {"type": "string", "description": "A name."}}}
TOOLS = [{"type": "function", "function": {"name": "age", "description": "Says an age.", "parameters": PARAMETERS}}]
log = logging.getLogger(__name__)


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json with all special tokens, and the chat template to a bundle's folder.

    They are compared with transformers' own tokenizer of the source on texts of many scripts and on chats.

    Raises:
        BadInputError: transformers does not open the source's tokenizer, it is not one of the tokenizers package, or
            what was written gives other ids.
    """
    own = read_tokenizer(source) if (source / FILE).is_file() else None
    check_words(source)
    tokenizer = open_tokenizer(source)
    with tempfile.TemporaryDirectory(prefix="rrt-edge-") as saved:
        several = isinstance(tokenizer.chat_template, dict)
        tokenizer.save_pretrained(saved, save_jinja_files=not several)  # a bundle has no folders in it
        for name in WRITTEN:
            path = Path(saved, name)
            if path.is_file():
                (folder / name).write_bytes(path.read_bytes())
    whole = Tokenizer.from_file(str(folder / FILE))
    whole.no_padding()
    whole.no_truncation()
    whole.save(str(folder / FILE), pretty=False)  # less than half of the bytes
    if own is not None and difference(tokenizer, lambda text: own.encode(text).ids) is not None:
        kind = type(tokenizer).__name__
        log.warning("%s: transformers' %s gives texts other ids than %s; it is taken", source, kind, FILE)
    check_tokenizer_of(source, folder, tokenizer)


def check_words(source: Path) -> None:
    """Look whether the source's chat template writes what users say; a line is logged where it leaves some of it out.

    Raises:
        BadInputError: it leaves out everything, or is not valid; names the file.
    """
    template, sources = ChatTemplate.from_folder(source), read_sources(source)
    loss = None if template is None else template.loss()
    if loss is None or sources is None:
        return
    if loss == "everything":
        raise BadInputError(f"{sources.path}: {LOSSES[loss]}")
    log.warning("%s: %s", sources.path, LOSSES[loss])


def open_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """
    Raises:
        BadInputError: transformers does not open it, or it is not one of the tokenizers package.
    """
    if not any((source / name).is_file() for name in READ):
        raise BadInputError(
            f"{source}: holds no {FILE}; save the tokenizer with AutoTokenizer.from_pretrained().save_pretrained()"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises many kinds, and tokenizers plain Exception
        if extra := missing_extra(source):
            reason = f"reading {extra} files needs further packages: pip install 'rrt-edge[{extra}]'"
            raise BadInputError(f"{source}: its tokenizer is not opened; {reason}") from error
        raise BadInputError(f"{source}: transformers does not open its tokenizer ({in_words(error)})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or getattr(tokenizer, "backend_tokenizer", None) is None:
        kind = type(tokenizer).__name__
        raise BadInputError(f"{source}: its tokenizer ({kind}) cannot be written as {FILE}, which bundles need")
    return tokenizer


def missing_extra(source: Path) -> str | None:
    """The extra that reads a folder's tokenizer.model or the like, where one of its packages is not installed."""
    if (source / FILE).is_file():
        return None
    path = next((source / name for name in READ if (source / name).is_file() and name.endswith(".model")), None)
    if path is None:
        return None
    with path.open("rb") as file:
        extra = "tiktoken" if RANK.fullmatch(file.readline(1 << 10)) else "sentencepiece"
    return extra if any(find_spec(package) is None for package in READERS[extra]) else None


def check_tokenizer_of(source: Path, bundle: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """
    Raises:
        BadInputError: a bundle gives a text or a chat other ids than transformers does with the source's tokenizer.
    """
    theirs = open_tokenizer(source) if tokenizer is None else tokenizer
    ours = read_tokenizer(bundle)
    text = difference(theirs, lambda text: ours.encode(text).ids)
    if text is not None:
        raise BadInputError(f"{source}: {FILE} of the bundle gives {shown(text)} other ids than transformers does")
    template = ChatTemplate.from_folder(bundle)
    if template is None:
        return
    for chat, tools in itertools.product((*CHATS, CALLING), (None, TOOLS)):
        try:
            seen: Any = template.as_seen(chat, tools)
            expected: Any = theirs.apply_chat_template(seen, tools=tools, add_generation_prompt=True, return_dict=False)
            rendered = template.render(chat, tools=tools)
        except Exception:  # jinja2's errors of both, of conversations that a template refuses
            continue
        if ours.encode(rendered, add_special_tokens=False).ids != list(expected):
            raise BadInputError(f"{source}: the bundle's chat template gives {shown(chat)} other ids than transformers")


def difference(theirs: PreTrainedTokenizerBase, ours: Callable[[str], Iterable[int]]) -> str | None:
    """A text that gets other ids, where there is one."""
    special: list[str] = theirs.all_special_tokens
    texts = [*TEXTS, *special, "a".join(special), " ".join(["x", *special, "y"])]
    return next((text for text in texts if list(ours(text)) != list(theirs(text)["input_ids"])), None)
