"""What a checkpoint is, by its config and the headers of its files: no weights are read, and no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rrt_edge.conversion.folder import RECURSIVE, gguf_fields, read_fields, weight_files
from rrt_edge.conversion.gguf_header import GgufHeader, read_header
from rrt_edge.model.sharing import own_loops
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json

Kind = Literal["checkpoint", "recursive checkpoint", "GGUF file"]
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
MOST_DIMENSIONS, LARGEST = 16, 1 << 48
TOKENIZER = "tokenizer.json"
TOKENIZERS = ("tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "spiece.model")
GGUF_ENDS = ("eos", "eot", "eom")
Fields = dict[str, Any]


@dataclass(frozen=True)
class Sharing:
    """How a recursive checkpoint shares its layers; it can be left after each of its loops."""

    loops: int
    layers_per_block: int | None
    rank: float
    component_ranks: dict[str, float]
    kv_rule: str
    gate_trained: bool
    source: str | None


@dataclass(frozen=True)
class End:
    """A token that a source names as the end of a reply, by id, text or both."""

    id: int | None
    text: str | None


@dataclass(frozen=True)
class SourceFacts:
    """What a source says of itself; None where it does not say.

    Attributes:
        family: `model_type` of the decoder, or llama.cpp's name of an architecture that is not read here.
        architecture: the class that config.json names, or llama.cpp's name of the architecture.
        name: what a GGUF file calls its model.
        parameters: numbers in all tensors, `stored` by their type.
        loops: those that `convert` may share the layers by.
        looped: the loops of a looped model of others, which it keeps.
        problem: why it cannot be converted.
    """

    source: str
    kind: Kind
    family: str | None
    architecture: str | None
    name: str | None
    layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    attention_heads: int | None
    key_value_heads: int | None
    head_dim: int | None
    vocabulary: int | None
    context_length: int | None
    parameters: int
    stored: dict[str, int]
    bytes: int
    tokenizer: str | None
    chat_template: bool
    ends: tuple[End, ...]
    loops: tuple[int, ...]
    looped: int | None
    sharing: Sharing | None
    problem: str | None


def read_facts(source: Path) -> SourceFacts:
    """
    Raises:
        BadInputError: it is no checkpoint at all, or a damaged one.
    """
    return _facts_of_gguf(source) if source.is_file() else _facts_of_folder(source)


def _facts_of_folder(folder: Path) -> SourceFacts:
    problem, tensors, size = None, dict[str, tuple[str, int]](), 0
    try:
        fields = read_fields(folder)
    except BadInputError as error:
        fields, problem = _raw_fields(folder, error), str(error)
    try:
        for name in weight_files(folder, fields)[0]:
            tensors |= _safetensors_header(folder / name)
            size += (folder / name).stat().st_size
    except BadInputError as error:
        problem = problem or str(error)
    recursive, tokenizer = fields.get("model_type") == RECURSIVE, _json(folder / TOKENIZER)
    kind: Kind = "recursive checkpoint" if recursive else "checkpoint"
    text = _object(fields, "text_config") or fields
    settings, generation = _json(folder / "tokenizer_config.json"), _json(folder / "generation_config.json")
    named = [generation.get("eos_token_id"), fields.get("eos_token_id"), text.get("eos_token_id")]
    template = (folder / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))
    return _facts(
        str(folder), kind, text, next(iter(_names(fields)), None), None, tensors.values(), size,
        _kind_of_tokenizer(folder, tokenizer), template,
        _ends([*named, _text(settings.get("eos_token"))], _added(tokenizer)),
        _sharing(fields, text) if recursive else None, problem,
    )  # fmt: skip


def _facts_of_gguf(path: Path) -> SourceFacts:
    header, problem = read_header(path), None
    try:
        fields = gguf_fields(header)
    except BadInputError as error:
        fields, problem = _gguf_sizes(header), str(error)
    metadata = header.metadata
    tensors = [(tensor.type, math.prod(tensor.shape)) for tensor in header.tensors.values()]
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    tokenizer = None if kind is None else f"{kind}, cut as {cut}" if cut else str(kind)
    name = metadata.get("general.name")
    return _facts(
        str(path), "GGUF file", fields, header.architecture, name if isinstance(name, str) else None, tensors,
        path.stat().st_size, tokenizer, "tokenizer.chat_template" in metadata,
        _ends([metadata.get(f"tokenizer.ggml.{end}_token_id") for end in GGUF_ENDS], {}), None, problem,
    )  # fmt: skip


def _facts(
    source: str, kind: Kind, text: Fields, architecture: str | None, name: str | None,
    tensors: Iterable[tuple[str, int]], size: int, tokenizer: str | None, chat_template: bool, ends: tuple[End, ...],
    sharing: Sharing | None, problem: str | None,
) -> SourceFacts:  # fmt: skip
    stored: Counter[str] = Counter()
    for type_name, count in tensors:
        stored[type_name] += count
    heads, hidden, layers = (_count(text, f) for f in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    head_dim = _count(text, "head_dim") or (hidden // heads if hidden and heads else None)
    own = None if problem else own_loops(text)
    divisors = tuple(n for n in range(1, (layers or 0) + 1) if layers and layers % n == 0) if own is None else (own,)
    family = text.get("model_type")
    return SourceFacts(
        source=source,
        kind=kind,
        family=family if isinstance(family, str) else None,
        architecture=architecture,
        name=name,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_count(text, "intermediate_size"),
        attention_heads=heads,
        key_value_heads=_count(text, "num_key_value_heads") or heads,
        head_dim=head_dim,
        vocabulary=_count(text, "vocab_size"),
        context_length=_count(text, "max_position_embeddings"),
        parameters=sum(stored.values()),
        stored=dict(stored.most_common()),
        bytes=size,
        tokenizer=tokenizer,
        chat_template=chat_template,
        ends=ends,
        loops=() if sharing or problem else divisors,
        looped=own,
        sharing=sharing,
        problem=problem,
    )


def _sharing(fields: Fields, text: Fields) -> Sharing:
    """As `RecursiveConfig` has it, its defaults included."""
    loops, layers, source = fields.get("loops", 2), _count(text, "num_hidden_layers"), fields.get("source")
    whole = loops if type(loops) is int and loops > 0 else 1
    rank = fields.get("rank", 0)
    return Sharing(
        loops=whole,
        layers_per_block=None if layers is None else layers // whole,
        rank=rank if isinstance(rank, int | float) else 0,
        component_ranks=_object(fields, "component_ranks"),
        kv_rule=str(fields.get("kv_rule", "exact")),
        gate_trained=fields.get("gate_trained") is True,
        source=source if isinstance(source, str) else None,
    )


def _raw_fields(folder: Path, error: BadInputError) -> Fields:
    """The fields of a config.json that is refused, unless it says nothing at all."""
    fields = _json(folder / "config.json")
    if not isinstance(fields.get("model_type"), str):
        raise error
    return fields


def _gguf_sizes(header: GgufHeader) -> Fields:
    """The sizes that all architectures name alike."""
    fields: Fields = {"model_type": header.architecture}
    for field, key in (
        ("num_hidden_layers", "block_count"), ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"), ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"), ("max_position_embeddings", "context_length"),
    ):  # fmt: skip
        fields[field] = header.metadata.get(f"{header.architecture}.{key}")
    return fields


def _safetensors_header(path: Path) -> dict[str, tuple[str, int]]:
    """Type and count of numbers of each tensor. The format: https://huggingface.co/docs/safetensors.

    Raises:
        BadInputError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                raise ValueError(length)
            entries = parse_json(file.read(length))
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        return {name: (str(entry["dtype"]), _numbers(entry["shape"])) for name, entry in tensors.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInputError(f"{path}: damaged or cut short; copy it again") from error


def _numbers(shape: list[int]) -> int:
    """How many numbers a tensor has.

    Raises:
        ValueError: no tensor has this shape.
    """
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < LARGEST for size in shape):
        raise ValueError("a shape")
    return math.prod(shape)


def _kind_of_tokenizer(folder: Path, tokenizer: Fields) -> str | None:
    """The kind of a folder's tokenizer, and the file that says it."""
    if (folder / TOKENIZER).is_file():
        return f"{_object(tokenizer, 'model').get('type') or 'of an unknown kind'} ({TOKENIZER})"
    return next((name for name in TOKENIZERS if (folder / name).is_file()), None)


def _added(tokenizer: Fields) -> dict[int, str]:
    """The texts of the tokens that were added to a vocabulary, by their ids."""
    tokens = tokenizer.get("added_tokens")
    entries = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    return {
        token["id"]: token["content"]
        for token in entries
        if type(token.get("id")) is int and isinstance(token.get("content"), str)
    }


def _ends(named: list[Any], added: dict[int, str]) -> tuple[End, ...]:
    """Ids, lists of ids and texts as ends, each once."""
    ids = {text: token for token, text in added.items()}
    flat = [entry for value in named for entry in (value if isinstance(value, list) else [value])]
    ends = [End(entry, added.get(entry)) for entry in flat if type(entry) is int]
    ends += [End(ids.get(entry), entry) for entry in flat if isinstance(entry, str)]
    return tuple(dict.fromkeys(ends))


def _json(path: Path) -> Fields:
    """The fields of a file that may be missing, or say anything."""
    try:
        fields = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _object(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _names(fields: Fields) -> list[str]:
    names = fields.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _count(fields: Fields, name: str) -> int | None:
    value = fields.get(name)
    return value if type(value) is int and value > 0 else None


def _text(token: Any) -> Any:
    """The text of a token of tokenizer_config.json, which may be an object."""
    return token.get("content") if isinstance(token, dict) else token
