"""What else a GGUF file holds, as the files of a folder: config, tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.runtime.errors import BadInputError, in_words
from rrt_edge.runtime.system.options import shown

SPACE = "\u2581"  # how pieces spell it
BYTES, PIECES = "gpt2", "llama"  # kinds of tokenizers: BPE over bytes, SentencePiece's BPE
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, a turn, a message
SAMPLING = {  # generation_config.json's names, by those of the metadata
    "general.sampling.temp": "temperature", "general.sampling.top_k": "top_k", "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p", "general.sampling.penalty_repeat": "repetition_penalty",
}  # fmt: skip
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"
SPLITS: dict[str, tuple[str, ...]] = {  # llama.cpp's, by `tokenizer.ggml.pre`: one after another
    **dict.fromkeys(("gpt-2", "olmo", "mpt", "jais", "phi-2"), (GPT2,)),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r", "codeshell", "exaone"), (DIGITS, GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "tekken": (TEKKEN,),
}  # fmt: skip


def write_folder(header: GgufHeader, config: PreTrainedConfig, folder: Path) -> None:
    """
    Raises:
        BadInputError: the tokenizer is of a kind that is not known, or the metadata of it is damaged.
    """
    config.save_pretrained(folder)
    tokenizer = _tokenizer(header)
    if header.metadata.get("tokenizer.ggml.model") == BYTES:
        _split_as_llama_cpp(header, tokenizer.backend_tokenizer)
    else:
        _space_as_llama_cpp(header, tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(_generation(header, config)), "utf-8")


def _tokenizer(header: GgufHeader) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers reads it."""
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in (BYTES, PIECES):
        raise BadInputError(
            f"{header.path}: tokenizer.ggml.model {shown(kind)} is not read; read are {BYTES} and {PIECES}"
        )
    path = header.path.resolve()
    try:
        return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers raises many kinds
        raise BadInputError(f"{header.path}: its tokenizer cannot be read: {in_words(error)}") from error


def _split_as_llama_cpp(header: GgufHeader, tokenizer: Tokenizer) -> None:
    """Cut text where llama.cpp does, for kinds that transformers does not know too."""
    name = header.text("tokenizer.ggml.pre")
    if name not in SPLITS:
        raise BadInputError(
            f"{header.path}: tokenizer.ggml.pre {shown(name)} is not read; read are {', '.join(SPLITS)}"
        )
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[name]]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, spelling])


def _space_as_llama_cpp(header: GgufHeader, tokenizer: Tokenizer) -> None:
    """Put a space before a text and behind each special token, unless the metadata says that there is none."""
    prefixed = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    tokenizer.pre_tokenizer = None
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)


def _generation(header: GgufHeader, config: PreTrainedConfig) -> dict[str, Any]:
    """What generation_config.json would say."""
    named = [header.metadata.get(f"tokenizer.ggml.{key}") for key in ENDS]
    ends = list(dict.fromkeys(end for end in named if isinstance(end, int)))
    sampling = {field: header.metadata[key] for key, field in SAMPLING.items() if key in header.metadata}
    if sampling:
        sampling["do_sample"] = sampling.get("temperature", 1) > 0  # llama.cpp takes the likeliest token at 0 and below
        sampling["top_k"] = max(
            0, sampling.get("top_k", 0)
        )  # 0 and below cut nothing there; transformers knows 0 alone
        if not sampling["do_sample"]:
            del sampling["temperature"]
    fields = {"bos_token_id": config.bos_token_id, "eos_token_id": ends or None, "pad_token_id": config.pad_token_id}
    return {**fields, **sampling}
