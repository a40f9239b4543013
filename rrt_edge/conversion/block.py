"""What each tensor of a recursive model is computed from (Relaxed Recursive Transformers, sections 2.2 and 2.3)."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rrt_edge.conversion.adapters import Energies, output_factors, residual_factors, spectrum
from rrt_edge.conversion.checkpoint import Checkpoint, Tensors
from rrt_edge.conversion.naming import HEAD
from rrt_edge.conversion.side_by_side import SideBySide
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import Family, family_of
from rrt_edge.model.gates import make_gate
from rrt_edge.model.lora import DepthLoRALinear, DepthNorms, join_rows, split_rows
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.progress import Progress

EMBEDDING = "model.embed_tokens.weight"
SOURCE_GATE = "model.early_exit_gate"  # of a looped model of others


@dataclass(frozen=True)
class Piece:
    """A tensor of the recursive model, or what one loop has of it: `tensor` is then its row `loop`."""

    name: str
    tensor: Tensor
    loop: int | None = None


class Block:
    """Computes the tensors of a recursive model in float32 from a source checkpoint, layer by layer."""

    def __init__(self, checkpoint: Tensors, model: RecursiveForCausalLM, dtype: torch.dtype) -> None:
        """
        Args:
            model: for its shapes; it may be on the meta device.
            dtype: how the tensors are stored.
        """
        self.config, self.family = model.config, family_of(model.config.text_config)
        self._checkpoint, self._model, self._dtype = checkpoint, model, dtype
        self._shapes = source_shapes(self.family, self.config.text_config)

    def around(self) -> Iterator[Piece]:
        """Yield what is not of the block: embedding, final norm, LM head, exit gate (untrained, or the source's)."""
        for name, _ in self._model.named_parameters():
            if not name.startswith("model.block.") and not (name == HEAD and self.config.tie_word_embeddings):
                yield Piece(name, self.outer(name))

    def outer(self, name: str) -> Tensor:
        """A parameter that is not of the block."""
        model, dtype = self._model, self._dtype
        if name == EMBEDDING:
            return self._embedding()
        if name == HEAD:
            return self._checkpoint.tensor(HEAD, model.lm_head.weight.shape, dtype)
        if name.startswith("model.norm."):
            final = f"{self.family.prefix}.{self.family.final_norm}.{name.removeprefix('model.norm.')}"
            return self._checkpoint.tensor(final, model.get_parameter(name).shape, dtype)
        if self.family.looping is not None:
            leaf = name.removeprefix("exit_gate.")
            return self._checkpoint.tensor(f"{SOURCE_GATE}.{leaf}", model.get_parameter(name).shape, dtype)
        gate = make_gate(self.config)
        assert gate is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gate.reset()
        return gate.get_parameter(name.removeprefix("exit_gate.")).detach().to(dtype)

    def shared_layer(self, k: int) -> Iterator[Piece]:
        """Yield weights, biases and norms of block layer `k`."""
        layer = self._model.model.block[k]
        for linear in self.family.linears:
            module = _adapted(layer, linear.path)
            yield Piece(f"model.block.{k}.{linear.path}.weight", self._weight(k, linear.path, module))
            if module.bias is not None:
                name, width = f"{linear.path}.bias", module.bias.shape[-1:]
                own = module.bias.dim() == 2
                bias = torch.stack(list(self._tied(k, name, width))) if own else self._shared(k, name, width)
                yield Piece(f"model.block.{k}.{name}", bias.to(self._dtype))
        for path in self.family.norms.values():
            yield from self._norm(k, path, layer.get_submodule(path))
        self._checkpoint.close()

    def adapters(self, k: int, energies: Energies) -> Iterator[Piece]:
        """Yield the adapters of block layer `k` from the truncated SVD of what sharing lost, or with B at zero.

        `energies` collects what they keep of it.
        """
        zero = self.config.lora_init == "zero"
        for linear in self.family.linears:
            module = _adapted(self._model.model.block[k], linear.path)
            if not any(module.ranks.values()):
                continue
            stored = self._weight(k, linear.path, module)
            for loop, weight in enumerate(self._tied(k, f"{linear.path}.weight", module.weight.shape)):
                weight -= stored  # in float32: what sharing loses, rounding included
                for part, residual in split_rows(weight, module.sizes, module.groups).items():
                    if not module.ranks[part]:
                        continue
                    lost = torch.zeros_like(residual) if zero else residual
                    a, b, kept, energy = residual_factors(lost, module.ranks[part])
                    if not zero:
                        energies.add(part, self.config.source_layer(loop, k), kept, energy)
                    yield from self._pair(k, loop, linear.path, module, part, a, b)
        self._checkpoint.close()

    def spectra(self, texts: Sequence[Sequence[int]], progress: Progress | None) -> Iterator[tuple[str, Tensor, int]]:
        """Yield how much each rank of an adapter brings back, for each projection at each depth.

        With texts it is of the output on them, on the source's own inputs, without texts of the weight.

        Returns:
            The projection; shares of the energy of its output or weight, the largest first; the numbers that a rank
            takes.
        """
        side = SideBySide(self.config, texts, self._embedding()) if texts else None
        for number, k in enumerate(self._block_layers()):
            tensors = self._source_layer(number)
            roots = self._input_roots(side, number, tensors) if side is not None else {}
            for path in (linear.path for linear in self.family.linears):
                module = _adapted(self._model.model.block[k], path)
                weight = tensors[f"{path}.weight"].float()
                whole = split_rows(weight, module.sizes, module.groups)
                lost = split_rows(weight - self._weight(k, path, module), module.sizes, module.groups)
                for part in module.sizes:
                    yield part, spectrum(whole[part], lost[part], roots.get(path)), sum(whole[part].shape)
            self._checkpoint.close()
            if progress is not None:
                progress(number + 1, self.config.text_config.num_hidden_layers, "layers measured")

    def _block_layers(self) -> list[int]:
        """The block's layer that stands for each layer of the source."""
        slots = itertools.product(range(self.config.loops), range(self.config.layers_per_block))
        return [k for _, k in sorted(slots, key=lambda slot: self.config.source_layer(*slot))]

    def _input_roots(self, side: SideBySide, number: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """`InputSums.root` of each linear of a source's layer on its own inputs; `side`'s source goes on behind it."""
        layer = side.layer(number, tensors)
        alone = side.copy()  # both models where the source is
        roots: dict[str, Tensor] = {}
        for group in side.groups(number, layer):
            root = alone.input_sums(number, layer, layer, group[0]).root
            roots |= dict.fromkeys(group, root)
        side.advance_source(number, layer)
        return roots

    def adapters_for_texts(
        self, texts: Sequence[Sequence[int]], energies: Energies, progress: Progress | None
    ) -> Iterator[Piece]:
        """Yield all adapters, those that lose least of the layers' output on some texts.

        The layers are made one after another, each on the inputs that those before it give. Where a loop stands for
        every other layer of the source, each is fitted beside the one it stands for, behind all that come before that.

        Args:
            texts: token ids.
            energies: collects what the projections lose of their output.
        """
        layers = self.config.text_config.num_hidden_layers
        side = SideBySide(self.config, texts, self._embedding())
        groups: list[list[str]] = []
        reached = 0  # the source's layer in front of which its states are
        for slot in range(layers):
            loop, k = divmod(slot, self.config.layers_per_block)
            number = self.config.source_layer(loop, k)
            if number < reached:
                side.restart_source(texts, self._embedding())
                reached = 0
            for before in range(reached, number):
                side.advance_source(before, side.layer(before, self._source_layer(before)))
            source = side.layer(number, self._source_layer(number))
            made = side.layer(k, self._unadapted_layer(k, loop))
            groups = groups or side.groups(slot, source)
            for group in groups:
                sums = side.input_sums(slot, source, made, group[0])
                for path in group:
                    module = _adapted(self._model.model.block[k], path)
                    original = split_rows(source.get_parameter(f"{path}.weight"), module.sizes, module.groups)
                    rows = split_rows(made.get_parameter(f"{path}.weight"), module.sizes, module.groups)
                    for part, weight in original.items():
                        if not module.ranks[part]:
                            continue
                        a, b, lost, whole = output_factors(weight, weight - rows[part], module.ranks[part], sums)
                        energies.add(part, number, lost, whole)
                        a, b = a.to(self._dtype), b.to(self._dtype)
                        yield from self._pair(k, loop, path, module, part, a, b)
                        rows[part] = rows[part] + b.float() @ a.float()
                    made.get_submodule(path).weight = nn.Parameter(join_rows(rows, module.groups), requires_grad=False)
            side.advance_source(number, source)
            side.advance_made(slot, made)
            reached = number + 1
            self._checkpoint.close()
            if progress is not None:
                progress(slot + 1, layers, "layers")

    def _embedding(self) -> Tensor:
        name = f"{self.family.prefix}.{self.family.embedding}.weight"
        return self._checkpoint.tensor(name, self._model.model.embed_tokens.weight.shape, self._dtype)

    def _pair(
        self, k: int, loop: int, path: str, module: DepthLoRALinear, part: str, a: Tensor, b: Tensor
    ) -> Iterator[Piece]:
        """A projection's adapter at one depth."""
        for name, tensor in zip(module.adapter_names(part), (a, b), strict=True):
            yield Piece(f"model.block.{k}.{path}.{name}", tensor.to(self._dtype), loop)

    def _weight(self, k: int, path: str, module: DepthLoRALinear) -> Tensor:
        """The weight that a linear of block layer `k` has at all depths, as stored."""
        shape = module.weight.shape
        if self.config.init == "random":
            seed = torch.Generator().manual_seed(zlib.crc32(f"{k}.{path}".encode()))
            weight: Tensor = torch.randn(shape, generator=seed) * self.config.text_config.initializer_range
        else:
            weight = self._shared(k, f"{path}.weight", shape)
        return weight.to(self._dtype)

    def _norm(self, k: int, path: str, module: nn.Module) -> Iterator[Piece]:
        start = f"model.block.{k}.{path}"
        if not isinstance(module, DepthNorms):
            for name, parameter in module.named_parameters():
                tensor = self._shared(k, f"{path}.{name}", parameter.shape)
                yield Piece(f"{start}.{name}", tensor.to(self._dtype))
            return
        for name, parameter in module[0].named_parameters():
            for loop, tensor in enumerate(self._tied(k, f"{path}.{name}", parameter.shape)):
                yield Piece(f"{start}.{loop}.{name}", tensor.to(self._dtype))

    def _source_layer(self, slot: int) -> dict[str, Tensor]:
        """The tensors of a layer of the source by their names in it."""
        return {name: self._source(slot, name, shape) for name, shape in self._shapes.items()}

    def _unadapted_layer(self, k: int, loop: int) -> dict[str, Tensor]:
        """The tensors of block layer `k` at one depth, without its adapters, by their names in the source's layer."""
        tensors = {}
        for name, shape in self._shapes.items():
            path, _, leaf = name.rpartition(".")
            module = self._model.model.block[k].get_submodule(path)
            if isinstance(module, DepthLoRALinear) and leaf == "weight":
                tensor = self._weight(k, path, module)
            elif self.config.own_vectors:
                tensor = self._source_at(loop, k, name, shape)
            else:
                tensor = self._shared(k, name, shape)
            tensors[name] = tensor.to(self._dtype).float()
        return tensors

    def _tied(self, k: int, parameter: str, shape: torch.Size) -> Iterator[Tensor]:
        """The tensors of the source's layers that share block layer `k`, loop by loop."""
        for loop in range(self.config.loops):
            yield self._source_at(loop, k, parameter, shape)

    def _source_at(self, loop: int, k: int, parameter: str, shape: torch.Size) -> Tensor:
        """A tensor of the layer that block layer `k` stands for at a depth."""
        return self._source(self.config.source_layer(loop, k), parameter, shape)

    def _source(self, slot: int, parameter: str, shape: torch.Size) -> Tensor:
        if self.family.looping is not None:  # its layers are those of the block
            slot %= self.config.layers_per_block
        return self._checkpoint.tensor(f"{self.family.prefix}.layers.{slot}.{parameter}", shape)

    def _shared(self, k: int, parameter: str, shape: torch.Size) -> Tensor:
        """Return what the block starts from (section 2.2)."""
        chosen = shared_source(self.config, k)
        if chosen is not None:
            return self._source(chosen, parameter, shape)
        total = torch.zeros(shape)
        for tensor in self._tied(k, parameter, shape):
            total += tensor
        return total.div_(self.config.loops)


def _adapted(layer: nn.Module, path: str) -> DepthLoRALinear:
    module = layer.get_submodule(path)
    assert isinstance(module, DepthLoRALinear)
    return module


def source_shapes(family: Family, config: PreTrainedConfig) -> dict[str, torch.Size]:
    """The shapes of a source layer's parameters by their names in it."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in family.decoder_layer(config, 0).named_parameters()}


def refuse_leftovers(checkpoint: Checkpoint, family: Family) -> None:
    """
    Raises:
        BadInputError: the source's first layer has weights that the config knows nothing of.
    """
    prefix = f"{family.prefix}.layers.0."
    for name, shape in checkpoint.unplaced.items():
        own = name.removeprefix(prefix)
        is_buffer = len(shape) not in (1, 2) or not own.endswith((".weight", ".bias"))
        if own != name and not is_buffer:
            raise BadInputError(
                f"{checkpoint.source}: the weights hold {name!r}, for which config.json has no place; is this the "
                "model config.json says?"
            )


def shared_source(config: RecursiveConfig, k: int) -> int | None:
    """The source layer that block layer `k` starts from, or None for the mean of the layers it replaces."""
    if config.init in ("average", "random"):  # `random` is of the linears: norms and biases are averaged
        return None
    if config.init == "lower":
        return k
    layers = config.text_config.num_hidden_layers
    # Section 2.2: evenly spaced, first and last kept; np.round rounds halves to even.
    return int(np.round(np.linspace(0, layers - 1, config.layers_per_block))[k])
