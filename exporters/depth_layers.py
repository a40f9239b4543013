"""The layers of a recursive model's block as its depths have them: plain layers of the family, adapters added."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rrt_edge.conversion.block import source_shapes
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors
from rrt_edge.model.families import Linear, family_of, head_shape, part_sizes
from rrt_edge.model.lora import adapter_names, join_rows, split_rows


class DepthLayers:
    """Reads the layers of a block one by one."""

    def __init__(self, weights: RecursiveTensors) -> None:
        config = weights.config
        self._weights, self._loops = weights, config.loops
        self._sizes, self._heads = part_sizes(config.text_config), head_shape(config.text_config)[0]
        self._family = family_of(config.text_config)
        self._shapes = source_shapes(self._family, config.text_config)
        self.linears = {linear.path: linear for linear in self._family.linears}

    def read(self, k: int) -> dict[str, Tensor]:
        """The tensors of block layer `k` by their names in it, those of all depths included."""
        start = f"model.block.{k}."
        names = list(self._shapes)
        for linear in self.linears.values():
            for part in linear.parts:
                names += [f"{linear.path}.{name}" for name in adapter_names(part, len(linear.parts) > 1)]
        for path in self._family.norms.values():
            names += [f"{path}.{depth}.{leaf}" for depth in range(self._loops) for leaf in ("weight", "bias")]
        tensors = {name: self._weights.tensor(start + name) for name in names if start + name in self._weights}
        self._weights.close()
        return tensors

    def at_depth(self, layer: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """The tensors of a layer of the source: what `read` gave, as one depth has it."""
        tensors = {}
        for name in self._shapes:
            path, _, leaf = name.rpartition(".")
            tensor = layer[name] if name in layer else layer[f"{path}.{depth}.{leaf}"]
            if path in self.linears and leaf == "weight":
                tensor = self.adapted(layer, depth, path, tensor)
            elif path in self.linears and tensor.dim() == 2:  # a bias of each depth's own
                tensor = tensor[depth]
            tensors[name] = tensor
        return tensors

    def adapted(self, layer: Mapping[str, Tensor], depth: int, path: str, weight: Tensor) -> Tensor:
        """A linear's weight at a depth: one of all depths, and what the adapters that `read` gave add."""
        added = {}
        for part in self.linears[path].parts:
            a, b = (f"{path}.{name}" for name in self.names(path, part))
            if a in layer:
                added[part] = layer[b][depth] @ layer[a][depth]
        return self.joined(path, weight, added) if added else weight

    def joined(self, path: str, weight: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """A linear's weight with something added to the rows of some of its projections."""
        rows = self.rows(path, weight)
        return join_rows({part: rows[part] + added.get(part, 0) for part in rows}, self._groups(path))

    def rows(self, path: str, weight: Tensor) -> dict[str, Tensor]:
        """The rows of each projection of a linear."""
        sizes = {part: self._sizes[part] for part in self.linears[path].parts}
        return split_rows(weight, sizes, self._groups(path))

    def names(self, path: str, part: str) -> tuple[str, str]:
        """The names of a projection's A and B in its linear."""
        return adapter_names(part, len(self.linears[path].parts) > 1)

    def _groups(self, path: str) -> int:
        linear: Linear = self.linears[path]
        return self._heads if linear.by_head else 1
