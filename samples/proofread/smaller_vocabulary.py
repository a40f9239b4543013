"""Leave out the rows of a model's vocabulary that its texts never use: a smaller embedding, and the same replies.

    python samples/proofread/smaller_vocabulary.py build/proofread/teacher build/proofread/train.jsonl \\
        build/proofread/small

What stays: special tokens, single bytes, every token of the texts for training, the more frequent of all English words,
and the pieces that these are merged from. Texts made of such tokens are cut as before; others are cut finer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pairs
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

FREQUENT = 25_000  # tokens of lesser ids are merged earlier, as they are more frequent in what a tokenizer is made of
WORD = re.compile("Ġ?[A-Z]?[a-z]+")
TOGETHER = 1000  # texts that are cut at a time

Merges = dict[tuple[str, str], int]  # by their rank


def derivation(token: str, merges: Merges) -> set[str]:
    """All pieces that come up while a token is merged from its bytes, itself included."""
    pieces, seen = list(token), set(token)
    while len(pieces) > 1:
        neighbours = itertools.pairwise(pieces)
        rank, at = min((merges.get(pair, len(merges)), at) for at, pair in enumerate(neighbours))
        if rank == len(merges):
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        seen.add(pieces[at])
    return seen


def kept(tokenizer: Tokenizer, texts: Sequence[str], frequent: int) -> list[int]:
    """The ids of the tokens that stay, in order."""
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    used = set[int]()
    for start in range(0, len(texts), TOGETHER):
        for encoding in tokenizer.encode_batch(texts[start : start + TOGETHER], add_special_tokens=False):
            used.update(encoding.ids)
    special = set(tokenizer.get_added_tokens_decoder())
    wanted = {
        token
        for token, id in vocabulary.items()
        if id in used or len(token) == 1 or (id < frequent and WORD.fullmatch(token))
    } - {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    pieces = set[str]().union(*(derivation(token, merges) for token in wanted))
    return sorted(special | {vocabulary[piece] for piece in pieces})


def with_fewer(tokenizer: Tokenizer, ids: Sequence[int]) -> Tokenizer:
    """The tokenizer with some of its tokens alone, numbered anew in the same order."""
    saved = json.loads(tokenizer.to_str())
    numbers = {id: number for number, id in enumerate(ids)}
    model = saved["model"]
    model["vocab"] = {token: numbers[id] for token, id in model["vocab"].items() if id in numbers}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    for added in saved["added_tokens"]:
        added["id"] = numbers[added["id"]]
    return Tokenizer.from_str(json.dumps(saved))


def check(before: Tokenizer, after: Tokenizer, ids: Sequence[int], texts: Iterable[str]) -> None:
    """
    Raises:
        SystemExit: a text is cut otherwise.
    """
    for text in texts:
        own = [ids[number] for number in after.encode(text, add_special_tokens=False).ids]
        if own != before.encode(text, add_special_tokens=False).ids:
            raise SystemExit(f"this text would be cut otherwise: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frequent", type=int, default=FREQUENT, help="words whose ids are lesser stay in any case")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    chats = [[{"role": "user", "content": text}] for text, _ in pairs.read_pairs(arguments.texts)]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    texts += [right for _, right in pairs.read_pairs(arguments.texts)]
    before = tokenizer.backend_tokenizer
    ids = kept(before, texts, arguments.frequent)
    after = with_fewer(before, ids)
    check(before, after, ids, texts)

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    rows = model.get_input_embeddings().weight.detach()[torch.tensor(ids)].clone()
    model.resize_token_embeddings(len(ids), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    numbers = {id: number for number, id in enumerate(ids)}
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
            if isinstance(id := getattr(config, name, None), int):
                setattr(config, name, numbers[id])
    tokenizer._tokenizer = after
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{arguments.out}: {len(ids):,} of {before.get_vocab_size():,} tokens, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
