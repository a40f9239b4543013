"""`RecursiveForCausalLM`: one block of the base family's own layers, run several times."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import ModelOutput

from rrt_edge.model.card import read_metadata, write_card
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import FULL, SLIDING, Family, family_of, head_shape, layer_types, part_sizes, windows
from rrt_edge.model.gates import Gate, make_gate
from rrt_edge.model.kv_rules import LeftKeyValues, LeftTokens
from rrt_edge.model.lora import Depth, DepthLoRALinear, DepthNorms, relax, set_submodule
from rrt_edge.runtime.errors import BadInputError

Leaves = Callable[[Sequence[Tensor], int], Tensor]  # (normed states [B, S, H] so far, loop from 0 on): bool [B, S]


@dataclass
class RecursiveOutput(ModelOutput):  # type: ignore[misc]
    """Output of `RecursiveForCausalLM`.

    Attributes:
        loss: cross entropy of the deepest logits, where labels were given.
        logits: [B, S, V] after the deepest loop run ([N, V] with `logits_mask`).
        depth_logits: the logits of every depth run, where `output_depths` was set; the last is `logits`.
        gate_logits: [B, S, n] ([N, n] with `logits_mask`), one column for each depth run but the model's last.
        exit_depths: [B, S] ([N] with `logits_mask`), the depth each token left at, where some were to.
        hidden_states: [B, S, H] after each layer run, loop after loop, where `output_hidden_states` was set.
        past_key_values: the cache, slot `loop * layers_per_block + layer`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    depth_logits: tuple[Tensor, ...] | None = None
    gate_logits: Tensor | None = None
    exit_depths: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: Cache | None = None


class SlotCache:
    """A view of a cache in which the block's layer k at one depth finds its slot, `first + k`."""

    def __init__(self, cache: Cache, first: int) -> None:
        self.cache = cache
        self.first = first

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        updated: tuple[Tensor, Tensor] = self.cache.update(keys, values, self.first + layer, *args, **kwargs)
        return updated


class RecursivePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = RecursiveConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _skip_keys_device_placement = ("past_key_values",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DepthLoRALinear):
            std = self.config.text_config.initializer_range
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
            for part, rank in module.ranks.items():
                if rank:
                    a, b = (getattr(module, name) for name in module.adapter_names(part))
                    init.normal_(a, mean=0.0, std=std)
                    init.zeros_(b)
        if "RotaryEmbedding" in type(module).__name__:  # buffers that no checkpoint holds
            for name, buffer in type(module)(module.config).named_buffers():
                init.copy_(module.get_buffer(name), buffer)
        if "RMSNorm" in type(module).__name__:
            init.constant_(module.weight, 1.0 - family_of(self.config.text_config).norm_offset)
        if isinstance(module, Gate):
            module.reset()


class RecursiveModel(RecursivePreTrainedModel):
    """Embedding, looped block and final norm."""

    def __init__(self, config: RecursiveConfig) -> None:
        super().__init__(config)
        text, family = config.text_config, family_of(config.text_config)
        text._attn_implementation = config._attn_implementation  # the layers read it from their own config
        if family.attention_softcap(text) and text._attn_implementation == "sdpa":
            text._attn_implementation = "eager"  # sdpa knows no soft-cap and would leave it out
        self.family, self.layer_types, self.windows = family, layer_types(text), windows(text)
        self.embedding_scale = family.embedding_scale(text)
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, text.pad_token_id)
        self.block = nn.ModuleList(family.decoder_layer(text, layer) for layer in range(config.layers_per_block))
        self.norm = family.norm(text)
        self.rotary_emb = family.rotary(text)
        self.depth = Depth()
        for layer in self.block:
            self._relax(layer)
        self.gradient_checkpointing = False
        self.post_init()

    def _relax(self, layer: nn.Module) -> None:
        """Give a layer what each depth has of its own."""
        config, text = self.config, self.config.text_config
        heads, sizes = head_shape(text)[0], part_sizes(text)
        own = config.own_vectors
        relax(layer, self.family.linears, sizes, config.rank_of, heads, config.loops, self.depth, own)
        for path in self.family.norms.values() if own else ():
            linear = layer.get_submodule(path)
            set_submodule(layer, path, DepthNorms([copy.deepcopy(linear) for _ in range(config.loops)], self.depth))

    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, S]
        attention_mask: Tensor | None = None,  # [B, P + S]
        position_ids: Tensor | None = None,  # [B, S]
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,  # [B, S, H]
        depth: int | None = None,
        exit_depths: Tensor | None = None,  # [B, S]; 0: where the gate says so
        leaves: Leaves | None = None,
        layer_states: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Run `depth` loops (all by default); returns the normed hidden state [B, S, H] after each.

        `leaves(normed, loop)` is the gate's word after a loop, bool [B, S]; `layer_states` gets the hidden state
        [B, S, H] after each layer run.

        Raises:
            BadInputError: `exit_depths` with a cache, or it or `layer_states` with gradient checkpointing.
        """
        if layer_states is not None and self.gradient_checkpointing:
            raise BadInputError("hidden states after each layer are not to be had with gradient checkpointing")
        if exit_depths is not None and (past_key_values is not None or self.gradient_checkpointing):
            raise BadInputError("exit_depths go with whole texts, without a cache and without gradient checkpointing")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        hidden = inputs_embeds
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        masking = {
            "config": self.config.text_config,
            "inputs_embeds": hidden,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        kinds = set(self.layer_types)
        masks = attention_masks(kinds, **masking)
        rotary = rotary_embeddings(self.family, self.rotary_emb, kinds, hidden, position_ids)
        left_tokens = LeftTokens(hidden) if exit_depths is None else self.config.rule.left_tokens(hidden)

        normed: list[Tensor] = []
        for loop in range(depth or self.config.loops):
            if exit_depths is not None and loop:
                if leaves is not None:
                    exit_depths = exit_depths.where((exit_depths > 0) | ~leaves(normed, loop - 1), loop)
                exited = (exit_depths > 0) & (exit_depths <= loop)  # before this depth, which counts from 1
                run = partial(self._run_block, loop, masks=masks, position_ids=position_ids, rotary=rotary)
                left_tokens.before_depth(exited, exit_depths == loop, hidden, run)
                if left_tokens.mask is not None:
                    masks = attention_masks(kinds, **masking, and_mask_function=left_tokens.mask)
            cache = past_key_values if left_tokens.key_values is None else left_tokens.key_values
            arguments = (loop, hidden, masks, position_ids, rotary, cache, None, layer_states)
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(self._run_block, *arguments)
            else:
                hidden = self._run_block(*arguments)
            normed.append(self.norm(hidden))
            if self.config.norm_inside:
                hidden = normed[-1]
        return normed

    def embed(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, H], scaled where the family scales."""
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded if self.embedding_scale == 1 else embedded * self.embedding_scale

    def _run_block(
        self,
        loop: int,
        hidden: Tensor,
        masks: dict[str, Tensor],
        position_ids: Tensor,
        rotary: dict[str, Any],
        cache: Cache | LeftKeyValues | None,
        frozen: Tensor | None = None,
        layer_states: list[Tensor] | None = None,
    ) -> Tensor:
        """One run of the block; `frozen`, bool [B, S, 1]: tokens whose state stays what it is."""
        self.depth.index = loop
        first = loop * self.config.layers_per_block
        slots: SlotCache | LeftKeyValues | None = None
        if isinstance(cache, LeftKeyValues):
            slots = cache
        elif cache is not None:
            slots = SlotCache(cache, first)
        for slot, layer in enumerate(self.block, first):
            kind = self.layer_types[slot]
            attention: Any = getattr(layer, "self_attn", None)
            if hasattr(attention, "sliding_window"):
                attention.sliding_window = self.windows[slot]  # flash attention has no mask to read it from
            updated = layer(
                hidden,
                attention_mask=masks[kind],
                position_ids=position_ids,
                position_embeddings=rotary[kind],
                use_cache=slots is not None,
                **{self.family.cache_argument: slots},
            )
            hidden = updated if frozen is None else torch.where(frozen, hidden, updated)
            if layer_states is not None:
                layer_states.append(hidden)
        return hidden


def attention_masks(kinds: Collection[str], **arguments: Any) -> dict[str, Any]:
    """The attention mask of each type of layer there is; the arguments are those of transformers' functions."""
    makers: dict[str, Callable[..., Any]] = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}
    return {kind: makers[kind](**arguments) for kind in kinds}


def rotary_embeddings(
    family: Family, rotary: nn.Module, kinds: Collection[str], hidden: Tensor, position_ids: Tensor
) -> dict[str, Any]:
    """cos and sin, [B, S, D] each, for each type of layer there is."""
    if family.rotary_by_type:
        return {kind: rotary(hidden, position_ids, kind) for kind in kinds}
    return dict.fromkeys(kinds, rotary(hidden, position_ids))


class RecursiveForCausalLM(RecursivePreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A recursive language model; works with transformers' `generate()` and Trainer."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: RecursiveConfig) -> None:
        super().__init__(config)
        self.model = RecursiveModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.exit_gate = make_gate(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        depth: int | None = None,
        output_depths: bool = False,
        logits_mask: Tensor | None = None,
        exit_depths: Tensor | None = None,
        exit_threshold: float | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> RecursiveOutput:
        """Run the model.

        Args:
            labels: [B, S], -100 where there is no loss.
            logits_to_keep: compute logits for the last n positions only (0: all), as `generate()` asks.
            depth: loops to run, 1 to `config.loops`; all by default.
            output_depths: also return the logits of every depth run.
            exit_depths: [B, S], the depth each token of a whole text leaves at; the others see it by `config.kv_rule`.
                At depths behind its own, what is returned of a token is what it would be had it alone gone on.
            exit_threshold: tokens with 0 in `exit_depths` leave at the first depth whose gate reaches it.
            output_hidden_states: also return the hidden state after each layer run.
            logits_mask: bool [B, S]; compute logits and gate for these positions only, flattened to [N, ...].
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        leaves = None if exit_threshold is None else partial(self._leaves, exit_threshold)
        layer_states: list[Tensor] | None = [] if output_hidden_states else None
        normed = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            depth,
            exit_depths,
            leaves,
            layer_states,
            **kwargs,
        )
        if logits_mask is not None:
            normed = [hidden[logits_mask] for hidden in normed]  # [N, H]
            exit_depths = None if exit_depths is None else exit_depths[logits_mask]
        elif isinstance(logits_to_keep, Tensor) or logits_to_keep:
            kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
            normed = [hidden[:, kept] for hidden in normed]

        depth_logits = tuple(self._logits(hidden) for hidden in (normed if output_depths else normed[-1:]))
        logits = depth_logits[-1]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return RecursiveOutput(
            loss=loss,
            logits=logits,
            depth_logits=depth_logits if output_depths else None,
            gate_logits=self._gate_logits(normed),
            exit_depths=None if exit_depths is None else self._exits(normed, exit_depths, leaves),
            hidden_states=None if layer_states is None else tuple(layer_states),
            past_key_values=past_key_values,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as transformers does, with a model card, which keeps what that of the folder it is from says."""
        metadata = read_metadata(Path(self.name_or_path)) if self.name_or_path else {}
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            write_card(Path(save_directory), self.config, metadata)

    def _logits(self, normed: Tensor) -> Tensor:
        text, family = self.config.text_config, self.model.family
        logits: Tensor = self.lm_head(normed) / family.logits_divisor(text)
        cap = family.logits_softcap(text)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _leaves(self, threshold: float, normed: Sequence[Tensor], loop: int) -> Tensor:
        """Whether each token's gate after a loop reaches the threshold."""
        if self.exit_gate is None:
            raise BadInputError("exit_threshold: this model has no exit gate")
        return torch.sigmoid(self.exit_gate.at(normed, loop)) >= threshold

    def _exits(self, normed: list[Tensor], exit_depths: Tensor, leaves: Leaves | None) -> Tensor:
        """The depth each token left at."""
        if leaves is not None:
            for loop in range(min(len(normed), self.config.loops - 1)):
                exit_depths = exit_depths.where((exit_depths > 0) | ~leaves(normed, loop), loop + 1)
        return exit_depths.where(exit_depths > 0, self.config.loops)

    def _gate_logits(self, normed: list[Tensor]) -> Tensor | None:
        read = [hidden.detach() for hidden in normed[: self.config.loops - 1]]  # the gate only reads
        if self.exit_gate is None:
            return None
        columns = [self.exit_gate.at(read, index) for index in range(len(read))]
        return torch.stack(columns, dim=-1)


AutoModelForCausalLM.register(RecursiveConfig, RecursiveForCausalLM, exist_ok=True)
