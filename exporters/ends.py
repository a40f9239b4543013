"""Which tokens end a reply: whatever a checkpoint's files name as such, and what ends a turn of its chats."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.template_files import special_tokens
from rrt_edge.runtime.bundle.template_probes import PROBE
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import shown

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
GENERATION, CONFIG = "generation_config.json", "config.json"
log = logging.getLogger(__name__)


def reply_ends(source: Path, bundle: Path, config_ends: Iterable[int], vocabulary: int) -> tuple[int, ...]:
    """The ids of the tokens that end a reply, those that chats end with included.

    They are those of generation_config.json, of config.json, the tokenizer's `eos_token`, and the token that the chat
    template writes behind what the assistant says: makers name them in one place or another, and a model that wrote one
    has nothing more to say. A line is logged where the template writes none, for then chats do not end by themselves.

    Args:
        source: a checkpoint's folder.
        bundle: where its tokenizer and chat template are written already.
        config_ends: `eos_token_id` of the checkpoint's config.

    Raises:
        BadInputError: no bundle with this tokenizer or template could be loaded, or an id is no token; names the file.
    """
    try:
        tokenizer, template = read_tokenizer(bundle), ChatTemplate.from_folder(bundle)
        texts = [special_tokens(bundle).get("eos_token")]
    except BundleError as error:
        raise BadInputError(str(error).replace(str(bundle), str(source))) from error
    ends: dict[int, None] = {}
    for name, ids in ((GENERATION, _generation_ends(source)), (CONFIG, config_ends)):
        for token in ids:
            _check(source / name, token, vocabulary, tokenizer)
            ends[token] = None
    if template is not None:
        texts.append(_turn_end(source, template, tokenizer))
    for text in texts:
        end = None if text is None else tokenizer.token_to_id(text)
        if end is not None and end < vocabulary:
            ends[end] = None
    return tuple(ends)


def _generation_ends(folder: Path) -> list[Any]:
    """What generation_config.json says, as it stands; nothing where it cannot be read, of which its writer tells."""
    try:
        fields = parse_json((folder / GENERATION).read_bytes())
    except (OSError, ValueError):
        return []
    named = fields.get("eos_token_id") if isinstance(fields, dict) else None
    return named if isinstance(named, list) else [] if named is None else [named]


def _check(path: Path, token: Any, vocabulary: int, tokenizer: Tokenizer) -> None:
    if type(token) is not int or not 0 <= token < vocabulary:
        raise BadInputError(f"{path}: eos_token_id {shown(token)}: is none of the model's {vocabulary} tokens")
    if tokenizer.id_to_token(token) is None:
        raise BadInputError(f"{path}: eos_token_id {token} is no token of tokenizer.json")


def _turn_end(folder: Path, template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    """The added token that follows what the assistant says, or None, of which a line tells."""
    try:
        text = template.render(CHAT, add_generation_prompt=False)
    except BadInputError as error:
        log.warning("%s: chats may not end by themselves: %s", folder, error)
        return None
    if PROBE not in text:
        log.warning("%s: the chat template leaves out what the assistant says, so that chats may go wrong", folder)
        return None
    after = text.rpartition(PROBE)[2].lstrip()
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    end = max((text for text in added if text and after.startswith(text)), key=len, default=None)
    if end is None:
        log.warning(
            "%s: chats may not end by themselves: the chat template writes no token of the tokenizer's own behind what "
            "the assistant says, but %s",
            folder,
            shown(after[:40]) if after else "nothing",
        )
    return end
