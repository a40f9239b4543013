"""Training with the rounding in it: while a step runs, the model's weights are those that export would write.

The floats are put back before the optimiser's step. The gradient goes straight through: what is learnt of a rounded
weight is taken for its float's, as if rounding were not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rrt_edge.model.families import family_of
from rrt_edge.model.lora import adapter_names
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.projections import projections, tensors_of
from rrt_edge.model.threads import torch_threads
from rrt_edge.quantisation.blocks import BLOCK, Quantized, rounded
from rrt_edge.quantisation.plan import Part, bits_by_part, packs_embedding
from rrt_edge.quantisation.scales import balancing
from rrt_edge.quantisation.wide import Adapted, Float, apart, fused, has_adapters, products, wide_a

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MOST_THREADS = 4  # each has the search in all cores as well


class Rounding:
    """Puts rounded weights in the place of a model's floats, in the same memory, and the floats back.

    Copies of the model that share its weights have them rounded with it.
    """

    def __init__(
        self,
        model: RecursiveForCausalLM,
        bits: int,
        block_size: int = BLOCK,
        eight_bit: Sequence[Part] | None = None,
    ) -> None:
        text = model.config.text_config
        self._model = model
        self._residual_scale = family_of(text).residual_scale(text)
        self._bits = bits_by_part(bits, eight_bit, text.tie_word_embeddings, block_size)
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._floats: dict[str, Tensor] = {}  # what the model had before it was rounded
        self._is_rounded = False
        self._threads = torch_threads(min(MOST_THREADS, torch.get_num_threads()))  # layers at a time
        self._factors: dict[str, Tensor] = {}  # what the gradients of adapters are multiplied by
        self._values: dict[str, Tensor] = {}  # the rounded weights, kept where the floats do not change
        packed = packs_embedding(text.hidden_size, self._bits.embedding)
        self._apart: nn.Parameter | None = None  # a tied head whose numbers are not the embedding's
        if text.tie_word_embeddings and not (packed and self._bits.head == self._bits.embedding):
            self._apart = nn.Parameter(torch.empty_like(model.lm_head.weight))

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def tensor(self, name: str) -> Tensor:
        """A parameter of the model, in float32 on the CPU."""
        return self._parameters[name].detach().float().cpu()

    def matrix(self, name: str) -> Float:
        """The same as numpy has it."""
        array: Float = self.tensor(name).numpy()
        return array

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model rounded for a while."""
        self.round()
        try:
            yield
        finally:
            self.restore()

    def round(self) -> None:
        """Have the model rounded from here on, where it is not."""
        if self._is_rounded:
            return
        self._is_rounded = True
        if self._values:
            self._put(self._values.items())
            return
        config = self._model.config
        layers = [partial(self._layer, f"model.block.{index}") for index in range(config.layers_per_block)]
        list(self._threads.map(lambda made: self._put(made()), [*layers, self._around]))

    def _put(self, values: Iterable[tuple[str, Tensor]]) -> None:
        """Have these in the model instead of floats, which are kept."""
        changes = any(parameter.requires_grad for parameter in self._model.model.parameters())
        for name, value in values:
            if not changes:
                self._values[name] = value
            if name == HEAD and self._apart is not None:
                self._apart.data.copy_(value)
                self._apart.requires_grad_(changes)
                self._model.lm_head.weight = self._apart
            else:
                parameter = self._parameters[name].data
                self._floats.setdefault(name, torch.empty_like(parameter)).copy_(parameter)
                parameter.copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its floats back, and them the gradients of what stood in their place."""
        if not self._is_rounded:
            return
        self._is_rounded = False
        for name, floats in self._floats.items():
            self._parameters[name].data.copy_(floats)
            gradient = self._parameters[name].grad
            if gradient is not None and name in self._factors:
                gradient.mul_(self._factors[name])
        if self._apart is not None:
            embedding = self._parameters[EMBEDDING]
            self._model.lm_head.weight = embedding
            if self._apart.grad is not None:
                embedding.grad = self._apart.grad if embedding.grad is None else embedding.grad.add_(self._apart.grad)
                self._apart.grad = None

    def _around(self) -> Iterator[tuple[str, Tensor]]:
        """Embedding and head, rounded; a tied head by its own name where its numbers are not the embedding's."""
        config = self._model.config
        if not config.tie_word_embeddings or self._apart is not None:  # before the embedding has other numbers
            head = EMBEDDING if config.tie_word_embeddings else HEAD
            yield HEAD, torch.from_numpy(self._as_stored(self.matrix(head), self._bits.head))
        if packs_embedding(config.text_config.hidden_size, self._bits.embedding):
            yield EMBEDDING, torch.from_numpy(self._as_stored(self.matrix(EMBEDDING), self._bits.embedding))

    def _as_stored(self, matrix: Float, bits: int, columns: int | None = None) -> Float:
        """A matrix as it is stored, whose rows are `columns` long without adapters."""
        stored = self._bits.format(bits, columns or matrix.shape[1])
        return rounded(matrix, stored.bits, stored.block)

    def _layer(self, layer: str) -> Iterator[tuple[str, Tensor]]:
        """The matrices of a layer of the block, rounded."""
        config = self._model.config
        parts = projections(self, config.text_config, layer, self.matrix, self._residual_scale)
        self._factors.update(self._factors_of(layer, parts))
        made: dict[str, Adapted] = {}
        for product in products(parts, config.rule.propagates):
            linears = [parts[part] for part in product]
            adapters = self._as_stored(wide_a(linears), self._bits.lora) if has_adapters(linears) else None
            whole = fused(linears)
            assert not isinstance(whole, Quantized)
            matrix = self._as_stored(whole, self._bits.block, linears[0].weight.shape[1])
            made.update(zip(product, apart(linears, matrix, adapters), strict=True))
        yield from tensors_of(made, config.text_config, layer, self._residual_scale)

    def _factors_of(self, layer: str, parts: dict[str, Adapted]) -> Iterator[tuple[str, Tensor]]:
        """What the gradients of A and B are multiplied by: export shares their sizes out anew before it rounds them."""
        for linear in family_of(self._model.config.text_config).linears:
            for part in linear.parts:
                stacked = parts[part].b
                if stacked is not None:
                    factors = torch.stack([torch.from_numpy(balancing(b)) for b in stacked])
                    factors = factors.to(self._model.device)  # [loops, rank]
                    a, b = adapter_names(part, len(linear.parts) > 1)
                    yield f"{layer}.{linear.path}.{a}", factors[:, :, None]
                    yield f"{layer}.{linear.path}.{b}", 1 / factors[:, None, :]
