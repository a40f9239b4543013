"""The model card of a recursive checkpoint: what it was made from, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.sharing import LOOPED, ranks_in_words
from rrt_edge.runtime.errors import one_line

log = logging.getLogger(__name__)
CARD = "README.md"
KEPT = ("license", "license_name", "license_link", "language", "datasets", "widget")  # what stays true of what is made
FORMATS = {"gguf", "ggml", "llama-cpp", "gptq", "awq", "exl2", "mlx", "onnx", "quantized"}  # tags of how weights were
TAGS = ["rrt-edge", "recursive-transformer", "early-exit"]
ABOUT = """\
A [Relaxed Recursive Transformer](https://arxiv.org/abs/2410.20672): the layers of the source share one block that is
run {loops} times, with low-rank adapters for each pass. A converted model has to be trained back before it
answers well."""
ABOUT_LOOPED = """\
The source loops by itself: its weights are copied, and it says what it said. Adapters, where there are any, begin at
zero and give each pass something of its own. The source's licence holds for it too."""


def read_metadata(folder: Path) -> dict[str, Any]:
    """What the front matter of a folder's card says; nothing where there is none.

    A card that cannot be read costs what it says, with a warning.
    """
    path = folder / CARD
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s); nothing that it says is kept", path, one_line(error))
        return {}
    dashes = [number for number, line in enumerate(lines) if line.rstrip() == "---"][:2]
    if len(dashes) < 2 or dashes[0] != 0:
        return {}
    try:
        metadata = yaml.safe_load("\n".join(lines[1 : dashes[1]]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, too many brackets
        log.warning("%s: its header is no YAML (%s); nothing that it says is kept", path, one_line(error))
        return {}
    return metadata if isinstance(metadata, dict) else {}


def write_card(folder: Path, config: RecursiveConfig, source: Mapping[str, Any]) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads.

    Args:
        source: the metadata of what the checkpoint is made from.
    """
    (folder / CARD).write_text(model_card(config, source), "utf-8", newline="\n")


def _metadata(config: RecursiveConfig, source: Mapping[str, Any]) -> ModelCardData:
    """What is true of a checkpoint, and what its source says that stays true."""
    kept = {name: source[name] for name in KEPT if source.get(name)}
    if source.get("language") is False:
        kept["language"] = "no"  # Norwegian, which YAML takes for an answer
    elif isinstance(source.get("language"), list):
        kept["language"] = ["no" if language is False else language for language in source["language"]]
    tags = source.get("tags")
    tags = [tag for tag in tags if isinstance(tag, str) and tag not in FORMATS] if isinstance(tags, list) else []
    return ModelCardData(
        base_model=config.source if config.source and "/" in config.source else source.get("base_model"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*TAGS, *(tag for tag in tags if tag not in TAGS)],
        **kept,
    )


def model_card(config: RecursiveConfig, source_metadata: Mapping[str, Any]) -> str:
    text, source = config.text_config, config.source or f"a {config.text_config.model_type} checkpoint"
    gate = "none" if config.looping.gate == "none" else "trained" if config.gate_trained else "not trained"
    looped = text.model_type in LOOPED
    layers = config.layers_per_block if looped else text.num_hidden_layers
    rows = [
        ("source", f"{source} ({text.model_type}, {layers} layers)"),
        ("loops x layers per block", f"{config.loops} x {config.layers_per_block}"),
        ("LoRA rank", ranks_in_words(config.rank, config.component_ranks) if config.relaxed else "none"),
        ("init", f"block {config.init}" + (f", adapters {config.lora_init}" if config.relaxed else "")),
        *([("order of the layers", config.order)] if config.order != "consecutive" else []),
        ("norms and biases", "of each depth" if config.own_vectors else "shared"),
        ("KV rule", config.kv_rule),
        ("exit gate", gate),
    ]
    if config.exits is not None:
        rows.append(("may be read after loop", ", ".join(map(str, config.exits))))
    if config.exit_threshold is not None:
        rows.append(("exit threshold", f"{config.exit_threshold}"))
    if config.exit_points:
        rows.append(("operating points", ", ".join(f"{name} {value:g}" for name, value in config.exit_points.items())))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
{_metadata(config, source_metadata).to_yaml()}
---

# A recursive model made from {source}

{ABOUT_LOOPED if looped else ABOUT.format(loops=config.loops)}

| | |
|---|---|
{table}

```python
import rrt_edge  # registers the model type
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
```

`rrt-edge export THIS-FOLDER bundle` makes a quantised ONNX bundle of it, which `rrt-edge chat bundle` runs with early
exit.
"""
