"""The source and the model made from it, run side by side on a few texts, one layer at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import family_of, layer_types
from rrt_edge.model.modeling import attention_masks, rotary_embeddings

DAMPING = 0.01  # of the mean square of an input, added to each: few texts do not reach every direction


@dataclass(frozen=True)
class InputSums:
    """What a linear's inputs on all texts come to, in the model that is being made.

    Attributes:
        root: [in, in], lower triangular; times its transpose it is the sum of x x^T, damped.
        guess: [in, in]; times an input it is the best linear guess of what the source's input has more. None where
            both are the same.
    """

    root: Tensor
    guess: Tensor | None


class SideBySide:
    """Hidden states [1, S, H] of texts behind the layers run so far, in the source and in the model made from it."""

    def __init__(self, config: RecursiveConfig, texts: Sequence[Sequence[int]], embedding: Tensor) -> None:
        """
        Args:
            texts: token ids.
            embedding: the source's, [V, H], in any float type.
        """
        text = config.text_config
        self._text, self._family = text, family_of(text)
        self._layers_per_block, self._kinds = config.layers_per_block, layer_types(text)
        self._rotary = self._family.rotary(text)
        scale = self._family.embedding_scale(text)
        self._source = [embedding[torch.tensor(ids)][None].float() * scale for ids in texts]
        self._made = list(self._source)
        self._arguments = [self._of_text(hidden) for hidden in self._source]

    def layer(self, index: int, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A layer of the family with weights of its own; `index` counts in the source."""
        with torch.device("meta"):
            layer = self._family.decoder_layer(self._text, index)
        layer.load_state_dict(dict(tensors), assign=True)
        return layer.eval().requires_grad_(False)

    @torch.no_grad()
    def groups(self, index: int, layer: nn.Module) -> list[list[str]]:
        """The paths of a layer's linears in the order in which they run; those with one input stand together."""
        order: list[tuple[str, Tensor]] = []
        hooks = [
            layer.get_submodule(linear.path).register_forward_pre_hook(
                lambda _, inputs, path=linear.path: order.append((path, inputs[0]))
            )
            for linear in self._family.linears
        ]
        self._run(index, layer, 0, self._source[0])
        _remove(hooks)
        groups: list[list[str]] = []
        before: Tensor | None = None
        for path, entered in order:
            if entered is before:
                groups[-1].append(path)
            else:
                groups.append([path])
            before = entered
        return groups

    @torch.no_grad()
    def moments(self, index: int, source: nn.Module, made: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
        """Sum up the inputs x of a linear in `made`; what runs before it has its final weights.

        Returns:
            The sums [in, in] of x x^T and of (y - x) x^T, where y is the same input in the source; None where no y is
            another than its x.
        """
        size = source.get_submodule(path).in_features
        assert isinstance(size, int)
        squares, crossed = torch.zeros(size, size), torch.zeros(size, size)
        differ = False
        for number, (source_hidden, made_hidden) in enumerate(zip(self._source, self._made, strict=True)):
            own = self._input(index, made, path, number, made_hidden)
            error = self._input(index, source, path, number, source_hidden) - own
            squares += own.T @ own
            crossed += error.T @ own
            differ = differ or bool(error.any())
        return squares, crossed if differ else None

    @torch.no_grad()
    def input_sums(self, index: int, source: nn.Module, made: nn.Module, path: str) -> InputSums:
        """`moments` as adapters are fitted with them."""
        squares, crossed = self.moments(index, source, made, path)
        root = torch.linalg.cholesky(damped(squares))
        return InputSums(root, None if crossed is None else torch.cholesky_solve(crossed.T, root).T)

    def copy(self) -> SideBySide:
        """The same texts, with both models where the source is."""
        twin = copy.copy(self)
        twin._source, twin._made = list(self._source), list(self._source)
        return twin

    @torch.no_grad()
    def advance_source(self, index: int, source: nn.Module) -> None:
        """Go on behind a layer of the source alone."""
        for number in range(len(self._source)):
            self._source[number] = self._run(index, source, number, self._source[number])

    @torch.no_grad()
    def advance(self, index: int, source: nn.Module, made: nn.Module) -> None:
        """Go on behind a layer."""
        self.advance_source(index, source)
        for number in range(len(self._made)):
            self._made[number] = self._run(index, made, number, self._made[number])

    def _of_text(self, hidden: Tensor) -> dict[str, dict[str, Any]]:
        """What a layer's forward takes beside a text's hidden states, by type of layer."""
        positions = torch.arange(hidden.shape[1])[None]
        kinds = set(self._kinds)
        masks = attention_masks(
            kinds,
            config=self._text,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        rotary = rotary_embeddings(self._family, self._rotary, kinds, hidden, positions)
        return {
            kind: {
                "attention_mask": masks[kind],
                "position_ids": positions,
                "position_embeddings": rotary[kind],
                "use_cache": False,
                self._family.cache_argument: None,
            }
            for kind in kinds
        }

    def _run(self, index: int, layer: nn.Module, number: int, hidden: Tensor) -> Tensor:
        behind: Tensor = layer(hidden, **self._arguments[number][self._kinds[index]])
        return behind

    def _input(self, index: int, layer: nn.Module, path: str, number: int, hidden: Tensor) -> Tensor:
        """[S, in]: what reaches a linear of a layer on one text; what comes behind it does not run."""

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            raise _Reached(inputs[0])

        hook = layer.get_submodule(path).register_forward_pre_hook(stop)
        try:
            self._run(index, layer, number, hidden)
        except _Reached as reached:
            return reached.hidden.flatten(0, -2)
        finally:
            hook.remove()
        raise AssertionError(f"{path} did not run")


def damped(squares: Tensor) -> Tensor:
    """A sum of x x^T with a share of its mean square added, in place: no direction is without any input."""
    mean = squares.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    squares.diagonal().add_(DAMPING * mean)
    return squares


class _Reached(Exception):
    """The linear asked for is about to run."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
