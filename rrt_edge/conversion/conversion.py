"""Turn a pretrained decoder into a recursive one (Relaxed Recursive Transformers, sections 2.2 and 2.3)."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from rrt_edge.conversion.adapters import Energies, Kept, OutputError
from rrt_edge.conversion.block import Block, Piece, refuse_leftovers
from rrt_edge.conversion.budget import curves, spend
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.checks import check_conversion
from rrt_edge.conversion.folder import SINGLE, is_recursive_checkpoint
from rrt_edge.conversion.options import ConvertOptions, DType, Init, LoRAInit
from rrt_edge.conversion.tensor_file import TensorFile
from rrt_edge.model.card import read_metadata, write_card
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import family_of
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.sharing import LOOPS, Order
from rrt_edge.model.text import tokenized
from rrt_edge.runtime.errors import BadInputError, in_words, one_line
from rrt_edge.runtime.scoring.corpus import read_records
from rrt_edge.runtime.system.files import new_folder
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.memory import peak_memory_bytes
from rrt_edge.runtime.system.options import shown
from rrt_edge.runtime.system.progress import Progress

GENERATION = "generation_config.json"
LONGEST_LEFT_OUT = 700  # characters of what a line says of fields that are left out
TEXT_TOKENS = 512  # of a text that adapters are fitted to, at most
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; `non_embedding` leaves out the embedding and the LM head, as the paper counts."""

    total: int
    non_embedding: int
    source_non_embedding: int


@dataclass(frozen=True)
class ConvertReport:
    out: str
    loops: int
    layers_per_block: int
    rank: float
    component_ranks: dict[str, float]
    init: str
    order: str
    lora_init: str
    own_vectors: bool
    texts: int
    tokens: int
    kept: tuple[Kept, ...]
    output_errors: tuple[OutputError, ...]
    parameters: Parameters
    seconds: float
    peak_memory_bytes: int


def convert(
    source: Path | str,
    out: Path | str,
    *,
    loops: int | None = None,
    init: Init = "average",
    order: Order = "consecutive",
    rank: float = 0,
    component_ranks: Mapping[str, float] | None = None,
    parameters: float | None = None,
    data: Path | str | None = None,
    data_tokens: int = 16384,
    lora_init: LoRAInit | None = None,
    own_vectors: bool | None = None,
    dtype: DType = "source",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a checkpoint into a recursive checkpoint, reading it layer by layer.

    The block starts from the mean of the layers that share it (`average`), from evenly spaced layers (`stepwise`), from
    the first ones (`lower`) or from noise (`random`). With a rank, each depth's LoRA starts from the truncated SVD of
    what sharing lost, or with B at zero; with `data`, where the layers' output on these texts loses least, one layer
    after another. Norms and biases are shared as in the paper, so full rank is exactly the source where they are equal,
    or where each depth keeps its own, as with `data`.

    Args:
        source: a checkpoint folder, the name of one on the Hugging Face hub, or a GGUF file.
        out: the folder to write; replaced where it holds a checkpoint made by this function.
        loops: times the block is run; divides the number of layers. 1 shares nothing; by default 2. A looped model of
            others (Ouro, Nanbeige 4.2) keeps its own, and its weights are copied.
        order: which layers of the source a loop stands for: the next ones (`consecutive`: all together are the source's
            own order), or every `loops`-th (`interleaved`: the first loop is a source with layers left out, which
            learns soon to answer alone, and the whole has to be trained before it answers).
        rank: LoRA rank of every linear at every depth, capped at its smaller side; below 1, a share of that.
        component_ranks: ranks that differ, of `attention` (queries and output), `kv` and `ffn`.
        parameters: how many the result may have, as a share of the source's, in place of ranks: these are chosen, in
            steps of 8, so that they bring back as much as they can of what sharing loses.
        data: texts or chats (`rrt_edge.model.text.read_examples`); a few dozen are enough.
        data_tokens: of the data, how many tokens are read, at most 512 of a text.
        lora_init: `svd` (of the weights), `output` (by the data) or `zero`; `output` where there is data, else `svd`.
        own_vectors: give each depth norms and biases of its own, as by default with data.
        dtype: how the weights are stored.
        trust_remote_code: run configuration code that the source brings, where its model type is not transformers' own.

    Raises:
        BadInputError: the source, an option or `out` is wrong.
        RRTEdgeError: the disk is full.
    """
    options = ConvertOptions(
        loops=loops,
        init=init,
        order=order,
        rank=rank,
        component_ranks=component_ranks or {},
        parameters=parameters,
        data=None if data is None else Path(data),
        data_tokens=data_tokens,
        lora_init=lora_init,
        own_vectors=own_vectors,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return _convert(source, Path(out), options, progress)


def _convert(source: Path | str, out: Path, options: ConvertOptions, progress: Progress | None) -> ConvertReport:
    started = time.perf_counter()
    options = dataclasses.replace(options, loops=check_conversion(source, out, options))
    checkpoint = Checkpoint(source, options.trust_remote_code)
    family = family_of(checkpoint.config)
    texts = read_texts(checkpoint, options.data, options.data_tokens)
    name = Path(source).resolve().name if Path(source).exists() else str(source)
    stored = checkpoint.dtype if options.dtype == "source" else getattr(torch, options.dtype)
    if options.parameters is not None:
        options = with_ranks(checkpoint, options, stored, texts, progress)
    config = recursive_config(checkpoint.config, options, name)
    with torch.device("meta"):
        model = RecursiveForCausalLM(config)
    energies = Energies()
    with new_folder(out, "recursive checkpoint", is_recursive_checkpoint) as folder:
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if config.tie_word_embeddings:
            shapes.pop("lm_head.weight", None)
        with TensorFile(folder / SINGLE, shapes, stored) as file:
            refuse_leftovers(checkpoint, family)
            for piece in recursive_state(Block(checkpoint, model, stored), texts, energies, progress):
                file.write(piece.name, piece.tensor, piece.loop)
        checkpoint.copy_companions(folder)
        write_generation_config(checkpoint, folder)
        config.architectures, config.dtype = [type(model).__name__], stored
        write_card(folder, config, read_metadata(checkpoint.folder))
        config.save_pretrained(folder)  # last: without it nothing loads the folder
    return ConvertReport(
        out=str(out),
        loops=config.loops,
        layers_per_block=config.layers_per_block,
        rank=options.rank,
        component_ranks=dict(config.component_ranks),
        init=config.init,
        order=config.order,
        lora_init=config.lora_init,
        own_vectors=config.own_vectors,
        texts=len(texts),
        tokens=sum(map(len, texts)),
        kept=() if texts else energies.kept(),
        output_errors=energies.output_errors() if texts else (),
        parameters=count_parameters(model),
        seconds=round(time.perf_counter() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )


def recursive_config(text: PreTrainedConfig, options: ConvertOptions, source: str | None) -> RecursiveConfig:
    """The config of the recursive model that is made of a decoder; `source` names the decoder's checkpoint.

    A looped model of others is one already: its layers are those of the block, and nothing is lost.
    """
    looping, loops = family_of(text).looping, options.loops or LOOPS
    chosen: dict[str, Any] = {
        "init": options.init, "order": options.order,
        "lora_init": options.adapters, "own_vectors": options.owns_vectors,
    }  # fmt: skip
    if looping is not None:
        own = looping(text)
        text = copy.deepcopy(text)
        text.num_hidden_layers *= loops
        chosen = {"init": "lower", "lora_init": "zero", "own_vectors": bool(options.own_vectors)}
        chosen |= {"norm_inside": own.norm_inside, "gate_kind": own.gate, "draft_depth": own.draft_depth}
        chosen |= {"exits": own.exits and list(own.exits), "gate_trained": own.gate != "none"}
    return RecursiveConfig(
        text_config=text,
        source=source,
        loops=loops,
        rank=options.rank,
        component_ranks=options.component_ranks,
        **chosen,
    )


def with_ranks(
    checkpoint: Checkpoint,
    options: ConvertOptions,
    stored: torch.dtype,
    texts: Sequence[Sequence[int]],
    progress: Progress | None,
) -> ConvertOptions:
    """The options with ranks in the place of a share of the source's parameters.

    Raises:
        BadInputError: what is shared takes more already.
    """
    assert options.parameters is not None
    with torch.device("meta"):
        model = RecursiveForCausalLM(recursive_config(checkpoint.config, options, None))
    count = count_parameters(model)
    source = count.source_non_embedding + count.total - count.non_embedding
    allowed = int(options.parameters * source) - count.total
    if allowed < 0:
        raise BadInputError(
            f"parameters {options.parameters}: {options.loops} loops have {count.total / source:.3f} of the source's "
            "already without adapters; allow more, or take more loops"
        )
    ranks = spend(curves(Block(checkpoint, model, stored).spectra(texts, progress)), allowed)
    return dataclasses.replace(options, parameters=None, component_ranks=dict(ranks))


def recursive_state(
    block: Block, texts: Sequence[Sequence[int]], energies: Energies, progress: Progress | None
) -> Iterator[Piece]:
    """Yield the recursive model's tensors; its adapters start from the weights, or fit the texts if there are any."""
    yield from block.around()
    for k in range(block.config.layers_per_block):
        yield from block.shared_layer(k)
        if not texts:
            yield from block.adapters(k, energies)
            if progress is not None:
                progress(k + 1, block.config.layers_per_block, "layers")
    if texts:
        yield from block.adapters_for_texts(texts, energies, progress)


def read_texts(checkpoint: Checkpoint, data: Path | None, tokens: int) -> list[list[int]]:
    """The texts that a model's parameters are fitted to, as token ids; none without data.

    Args:
        tokens: how many are read of the data.

    Raises:
        BadInputError: the data file is empty, a record of it is not of the form, or there is no tokenizer for it.
    """
    if data is None:
        return []
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{checkpoint.folder}: --data needs the model's tokenizer, which is not there") from error
    texts: list[list[int]] = []
    room = tokens
    for example in tokenized(read_records(data), tokenizer, TEXT_TOKENS):
        if ids := example["input_ids"][:room]:
            texts.append(ids)
            room -= len(ids)
        if not room:
            break
    if not texts:
        raise BadInputError(f"{data}: the data file is empty")
    vocabulary = checkpoint.config.get_text_config().vocab_size
    if (largest := max(map(max, texts))) >= vocabulary:
        raise BadInputError(
            f"{checkpoint.folder}: the tokenizer gives the id {largest}, but config.json has a vocabulary of "
            f"{vocabulary}; is it this model's?"
        )
    return texts


def count_parameters(model: RecursiveForCausalLM) -> Parameters:
    """Count from shapes alone; works on the meta device. The exit gate is left out: it is not the paper's."""
    config = model.config.text_config
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    inner = [(name, p.numel()) for name, p in model.model.named_parameters() if "embed_tokens" not in name]
    non_embedding = sum(count for _, count in inner)
    with torch.device("meta"):
        source_layer = family_of(config).decoder_layer(config, 0)
    one_layer = sum(p.numel() for p in source_layer.parameters())
    final_norm = sum(p.numel() for p in model.model.norm.parameters())
    layers = config.num_hidden_layers if family_of(config).looping is None else model.config.layers_per_block
    source = one_layer * layers + final_norm
    return Parameters(embedding + non_embedding, non_embedding, source)


def write_generation_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the source's generation_config.json, or one with the token ids of its config where it has none.

    What transformers would not read again is left out, and a line tells of it.
    """
    path = checkpoint.folder / GENERATION
    config = None
    if path.is_file():
        try:
            fields = parse_json(path.read_bytes())
            if not isinstance(fields, dict):
                raise ValueError("it is no JSON object")
            config = _generation_config(path, fields)
        except (OSError, ValueError) as error:
            log.warning("%s: left out, since it cannot be read (%s); correct the file", path, one_line(error))
    if config is None:
        config = GenerationConfig.from_model_config(checkpoint.config)
    config.to_json_file(folder / GENERATION)


def _generation_config(path: Path, fields: Mapping[str, Any]) -> GenerationConfig:
    """Those of the fields that may stand together, of which the first count."""
    kept: dict[str, Any] = dict(fields)
    try:
        GenerationConfig(**kept).to_json_string()
    except Exception:  # transformers raises many kinds
        kept, odd = {}, []
        for name, value in fields.items():
            try:
                GenerationConfig(**kept, **{name: value}).to_json_string()
                kept[name] = value
            except Exception as error:
                odd.append(f"{name} {shown(value)} ({in_words(error)})")
        log.warning("%s: left out: %s; correct the file", path, one_line(", ".join(odd), LONGEST_LEFT_OUT))
    return GenerationConfig(**kept)
