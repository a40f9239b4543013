"""The model card of a recursive checkpoint: what it was made from, and how."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.sharing import LOOPED

CARD = "README.md"
ABOUT = """\
A [Relaxed Recursive Transformer](https://arxiv.org/abs/2410.20672): the layers of the source share one block that is
run {loops} times, with low-rank adapters for each pass. A converted model has to be trained back before it
answers well."""
ABOUT_LOOPED = """\
The source loops by itself: its weights are copied, and it says what it said. Adapters, where there are any, begin at
zero and give each pass something of its own. The source's licence holds for it too."""


def write_card(folder: Path, config: RecursiveConfig) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads."""
    (folder / CARD).write_text(model_card(config), "utf-8", newline="\n")


def model_card(config: RecursiveConfig) -> str:
    text, source = config.text_config, config.source or f"a {config.text_config.model_type} checkpoint"
    metadata = ModelCardData(
        base_model=config.source if config.source and "/" in config.source else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rrt-edge", "recursive-transformer", "early-exit"],
    )
    ranks = [f"{config.rank}", *(f"{name} {rank}" for name, rank in config.component_ranks.items())]
    gate = "none" if config.looping.gate == "none" else "trained" if config.gate_trained else "not trained"
    looped = text.model_type in LOOPED
    layers = config.layers_per_block if looped else text.num_hidden_layers
    rows = [
        ("source", f"{source} ({text.model_type}, {layers} layers)"),
        ("loops x layers per block", f"{config.loops} x {config.layers_per_block}"),
        ("LoRA rank", ", ".join(ranks) if config.relaxed else "none"),
        ("init", f"block {config.init}" + (f", adapters {config.lora_init}" if config.relaxed else "")),
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
{metadata.to_yaml()}
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
