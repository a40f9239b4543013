"""Bundles of random weights in the shape of a known model, to measure speed and memory without its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import LlamaConfig

from rrt_edge.exporters.block import LayerWeights, Norm
from rrt_edge.exporters.bundle import plan_bits, watched, write_manifest
from rrt_edge.exporters.checks import SHAPES, check_shape, is_bundle
from rrt_edge.exporters.dry_run import shared_weight_bytes
from rrt_edge.exporters.embedding_and_head import GateWeights, HazardWeights, OuterWeights
from rrt_edge.exporters.loop_graph import emit
from rrt_edge.exporters.options import ExportOptions, WeightBits
from rrt_edge.exporters.spec import BlockSpec, spec_of
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.gates import GATE_WIDTH
from rrt_edge.quantisation.blocks import BLOCK
from rrt_edge.quantisation.wide import Adapted
from rrt_edge.runtime.bundle.kv_rule_names import KVRuleName
from rrt_edge.runtime.system.files import new_folder
from rrt_edge.runtime.system.progress import Progress

Float = NDArray[np.float32]
SPREAD = 0.02  # standard deviation of the weights


def random_bundle(
    shape: str,
    bundle: Path,
    *,
    loops: int = 2,
    rank: int = 0,
    bits: WeightBits = 4,
    block_size: int = BLOCK,
    kv_rule: KVRuleName = "exact",
    kv_bits: int = 32,
    merge_adapters: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a bundle of random weights; its tokenizer has one word for each token, and no token ends a reply.

    Raises:
        BadInputError: there is no such shape, or loops, rank, bits, block size or KV bits cannot be, or there are no
            adapters to merge.
    """
    check_shape(shape, loops, rank, merge_adapters)
    options = ExportOptions(bits=bits, block_size=block_size, kv_bits=kv_bits, merge_adapters=merge_adapters)
    text = LlamaConfig(**SHAPES[shape], eos_token_id=None)
    config = RecursiveConfig(text_config=text, loops=loops, rank=rank, kv_rule=kv_rule)
    spec = dataclasses.replace(spec_of(config), kv_bits=kv_bits)
    plan = plan_bits(options, config.tie_word_embeddings)
    rng = np.random.default_rng(0)
    with new_folder(bundle, "bundle", is_bundle) as folder:
        layers = watched(_layers(spec, rng), spec.layers, progress)
        weight_bytes = emit(spec, plan, _outer(spec, rng), layers, folder, merge_adapters)
        words = {f"w{index}": index for index in range(spec.vocabulary)}
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
        provenance = {"shape": shape, "weights": "random"}
        shared = shared_weight_bytes(config, spec, plan) if merge_adapters else None
        write_manifest(
            config, spec, bits, plan, weight_bytes, folder, eos_token_ids=(), provenance=provenance,
            shared_weight_bytes=shared,
        )  # fmt: skip


def _random(rng: np.random.Generator, *shape: int) -> Float:
    weights: Float = rng.standard_normal(shape, np.float32)
    weights *= SPREAD
    return weights


def _outer(spec: BlockSpec, rng: np.random.Generator) -> OuterWeights:
    embedding = _random(rng, spec.vocabulary, spec.hidden)
    head = None if spec.tied_head else _random(rng, spec.vocabulary, spec.hidden)
    return OuterWeights(
        embedding=lambda: embedding,
        norm=Norm(np.ones(spec.hidden, np.float32)),
        head=None if head is None else lambda: head,
        gate=_gate(spec, rng),
    )


def _gate(spec: BlockSpec, rng: np.random.Generator) -> GateWeights | HazardWeights | None:
    if spec.looping.gate == "none":
        return None
    if spec.looping.gate == "hazard":
        return HazardWeights(_random(rng, 1, spec.hidden), np.zeros(1, np.float32))
    return GateWeights(
        inner=_random(rng, spec.loops - 1, GATE_WIDTH, spec.hidden),
        inner_bias=np.zeros((spec.loops - 1, GATE_WIDTH), np.float32),
        outer=_random(rng, spec.loops - 1, GATE_WIDTH),
        bias=np.zeros(spec.loops - 1, np.float32),
    )


def _layers(spec: BlockSpec, rng: np.random.Generator) -> Iterator[LayerWeights]:
    def linear(outputs: int, inputs: int) -> Adapted:
        rank = min(spec.rank, inputs, outputs)
        if not rank:
            return Adapted(_random(rng, outputs, inputs))
        a, b = _random(rng, spec.loops, rank, inputs), _random(rng, spec.loops, outputs, rank)
        return Adapted(_random(rng, outputs, inputs), None, a, b)

    ones = Norm(np.ones(spec.hidden, np.float32))
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for _ in range(spec.layers):
        yield LayerWeights(
            norms={"before_attention": ones, "before_mlp": ones},
            q=linear(q, spec.hidden),
            k=linear(kv, spec.hidden),
            v=linear(kv, spec.hidden),
            o=linear(spec.hidden, q),
            gate=linear(spec.intermediate, spec.hidden),
            up=linear(spec.intermediate, spec.hidden),
            down=linear(spec.hidden, spec.intermediate),
        )
