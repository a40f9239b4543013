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
from rrt_edge.model.threads import torch_threads

SHARES = 4  # of the texts, which are summed up apart: so many on every machine, for the same sums
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

    def __init__(
        self,
        config: RecursiveConfig,
        texts: Sequence[Sequence[int]],
        embedding: Tensor,
        norm: nn.Module | None = None,
    ) -> None:
        """
        Args:
            texts: token ids.
            embedding: the source's, [V, H], in any float type.
            norm: the final norm, where it stands inside the loop.
        """
        self._norm = norm
        text = config.text_config
        self._text, self._family = text, family_of(text)
        self._layers_per_block, self._kinds = config.layers_per_block, layer_types(text)
        self._rotary = self._family.rotary(text)
        self._source = self._embedded(texts, embedding)
        self._made = list(self._source)
        self._shares = [range(first, len(texts), SHARES) for first in range(min(SHARES, len(texts)))]
        self._threads = torch_threads(min(torch.get_num_threads(), SHARES))
        lengths = {len(ids): hidden for ids, hidden in zip(texts, self._source, strict=True)}
        of_length = {length: self._of_text(hidden) for length, hidden in lengths.items()}
        self._arguments = [of_length[len(ids)] for ids in texts]

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
        self.run(index, layer, 0, self._source[0])
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

    def moments(self, index: int, source: nn.Module, made: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
        """Sum up the inputs x of a linear in `made`; what runs before it has its final weights.

        Returns:
            The sums [in, in] of x x^T and of (y - x) x^T, where y is the same input in the source; None where no y is
            another than its x.
        """

        @torch.no_grad()
        def of_share(share: range) -> tuple[Tensor, Tensor, bool]:
            size = source.get_submodule(path).in_features
            assert isinstance(size, int)
            squares, crossed, differ = torch.zeros(size, size), torch.zeros(size, size), False
            for number in share:
                own = self._input(index, made, number, self._made[number])
                error = self._input(index, source, number, self._source[number]) - own
                squares.addmm_(own.T, own)
                crossed.addmm_(error.T, own)
                differ = differ or bool(error.any())
            return squares, crossed, differ

        hooks = [layer.get_submodule(path).register_forward_pre_hook(_stop) for layer in (source, made)]
        try:
            sums = self._threads.map(of_share, self._shares)
            squares, crossed, differ = next(sums)
            for more, more_crossed, more_differ in sums:  # in order, for the same sums each time
                squares += more
                crossed += more_crossed
                differ = differ or more_differ
        finally:
            _remove(hooks)
        return squares, crossed if differ else None

    @torch.no_grad()
    def input_sums(self, index: int, source: nn.Module, made: nn.Module, path: str) -> InputSums:
        """`moments` as adapters are fitted with them."""
        squares, crossed = self.moments(index, source, made, path)
        root = torch.linalg.cholesky(damped(squares))
        return InputSums(root, None if crossed is None else torch.cholesky_solve(crossed.T, root).T)

    @property
    def source(self) -> list[Tensor]:
        """The hidden states of each text where the source is."""
        return list(self._source)

    def copy(self) -> SideBySide:
        """The same texts, with both models where the source is."""
        twin = copy.copy(self)
        twin._source, twin._made = list(self._source), list(self._source)
        return twin

    def advance_source(self, index: int, source: nn.Module) -> None:
        """Go on behind a layer of the source alone."""
        self._advance(index, source, self._source)

    def restart_source(self, texts: Sequence[Sequence[int]], embedding: Tensor) -> None:
        """Have the source's states in front of its first layer again; the arguments are those of the constructor."""
        self._source = self._embedded(texts, embedding)

    def advance_made(self, index: int, made: nn.Module) -> None:
        """Go on behind a layer of the model that is being made alone."""
        self._advance(index, made, self._made)

    def advance(self, index: int, source: nn.Module, made: nn.Module) -> None:
        """Go on behind a layer."""
        self.advance_source(index, source)
        self.advance_made(index, made)

    def _advance(self, index: int, layer: nn.Module, states: list[Tensor]) -> None:
        @torch.no_grad()
        def behind(number: int) -> None:
            hidden = self.run(index, layer, number, states[number])
            ends_loop = (index + 1) % self._layers_per_block == 0
            states[number] = self._norm(hidden) if ends_loop and self._norm is not None else hidden

        list(self._threads.map(behind, range(len(states))))

    def _embedded(self, texts: Sequence[Sequence[int]], embedding: Tensor) -> list[Tensor]:
        """[1, S, H] of each text in front of the first layer."""
        scale = self._family.embedding_scale(self._text)
        return [embedding[torch.tensor(ids)][None].float() * scale for ids in texts]

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

    def run(self, index: int, layer: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """Hidden states of a text behind a layer."""
        behind: Tensor = layer(hidden, **self._arguments[number][self._kinds[index]])
        return behind

    def _input(self, index: int, layer: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """[S, in]: what reaches the linear that has the hook `_stop` on one text; what comes behind it does not run."""
        try:
            self.run(index, layer, number, hidden)
        except _Reached as reached:
            return reached.hidden.flatten(0, -2)
        raise AssertionError("the linear did not run")


def damped(squares: Tensor) -> Tensor:
    """A sum of x x^T with a share of its mean square added, in place: no direction is without any input."""
    mean = squares.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    squares.diagonal().add_(DAMPING * mean)
    return squares


class _Reached(Exception):
    """The linear asked for is about to run."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
