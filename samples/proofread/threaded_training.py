"""A trainer for a few cores: texts as examples, batches of like length, a copy of the model for each thread.

Each batch is divided over the threads, and each thread runs its part with a copy of the model that shares the weights:
the cores meet once a step, not once an operation, so that work beside it costs no more than its share.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 64  # batches that are sorted by length together, then shuffled
POSITIONS = 1024  # that a thread runs at once, padding included, to bound the memory


@dataclass(frozen=True)
class Example:
    """Tokens of a prompt and of the reply it should get, with the token that ends it."""

    prompt: list[int]
    reply: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


@dataclass
class Progress:
    """How far the training is, and what it wrote on the way."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, correct: str) -> Example:
    turn = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    reply = tokenizer.encode(correct, add_special_tokens=False)
    return Example(tokenizer.encode(prompt, add_special_tokens=False), [*reply, tokenizer.eos_token_id])


def batches_of(examples: Sequence[Example], size: int, budget: int, seed: int) -> list[list[Example]]:
    """Batches of texts of like length, in an order that the seed decides, until they hold `budget` tokens."""
    rng, found, tokens = random.Random(seed), list[list[Example]](), 0
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        for start in range(0, len(order), size * WINDOW):
            window = sorted((examples[index] for index in order[start : start + size * WINDOW]), key=len)
            cut = [window[at : at + size] for at in range(0, len(window), size)]
            for batch in rng.sample(cut, len(cut)):
                found.append(batch)
                tokens += sum(map(len, batch))
                if tokens >= budget:
                    return found


def share_of_loss(
    model: PreTrainedModel, batch: Sequence[Example], replies: int, learn: bool = False, bf16: bool = False
) -> float:
    """The summed loss of some texts over the number of reply tokens in the whole batch; with `learn`, its gradients.

    Texts are padded on the right, which causal attention never looks at; the head sees the positions before reply
    tokens alone. The gradient of the rows that were looked up is added to the head's, which is the same matrix:
    autograd would fill a second one of that size for each call. With `bf16` products are made in bfloat16.
    """
    width = max(map(len, batch))
    ids, labels = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -1)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.prompt + example.reply)
        labels[row, len(example.prompt) - 1 : len(example) - 1] = torch.tensor(example.reply)
    asked, matrix = labels >= 0, model.get_input_embeddings().weight
    with torch.set_grad_enabled(learn), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        looked_up = F.embedding(ids, matrix.detach()).requires_grad_(learn)  # [B, S, D]
        hidden = model.model(inputs_embeds=looked_up, use_cache=False).last_hidden_state  # [B, S, D]
        loss = F.cross_entropy(model.lm_head(hidden[asked]), labels[asked], reduction="sum") / replies
    if learn:
        loss.backward()
        matrix.grad.index_add_(0, ids.flatten(), looked_up.grad.flatten(0, 1))
    return loss.item()


def portions(ordered: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Texts, the shortest first, in parts of at most `POSITIONS`; a longer one stands alone."""
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * len(ordered[end]) > POSITIONS:
            yield ordered[start:end]
            start = end


class Trainer:
    """The model, a copy of it for each further thread, and an optimizer for each thread's part of the weights."""

    def __init__(self, folder: Path, threads: int, bf16: bool = False) -> None:
        self.bf16 = bf16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
        self.models = [model, *(copy.deepcopy(model) for _ in range(threads - 1))]
        weights = list(model.parameters())
        self.parts = [range(part, len(weights), threads) for part in range(threads)]
        for other in self.models[1:]:
            for weight, own in zip(other.parameters(), weights, strict=True):
                weight.data = own.data
        self.optimizers = [
            torch.optim.AdamW([weights[index] for index in part], betas=(0.9, 0.95), weight_decay=0.01, fused=True)
            for part in self.parts
        ]
        self.threads = ThreadPoolExecutor(threads)

    def step(self, batch: Sequence[Example], lr: float) -> float:
        ordered, count = sorted(batch, key=len), len(self.models)
        replies = sum(len(example.reply) for example in batch)

        def learn(part: int) -> float:
            texts = portions(ordered[part::count])
            return sum(share_of_loss(self.models[part], some, replies, True, self.bf16) for some in texts)

        loss = sum(self.threads.map(learn, range(count)))
        weights = [list(model.parameters()) for model in self.models]

        def gather(part: int) -> float:
            norm = 0.0
            for index in self.parts[part]:
                grads = [some[index].grad for some in weights]
                for other in grads[1:]:
                    if other is not None:
                        grads[0] += other
                norm += grads[0].norm().item() ** 2
            return norm

        scale = min(1.0, 1.0 / (math.sqrt(sum(self.threads.map(gather, range(count)))) + 1e-6))

        def update(part: int) -> None:
            for index in self.parts[part]:
                weights[0][index].grad *= scale
            self.optimizers[part].param_groups[0]["lr"] = lr
            self.optimizers[part].step()
            for index in self.parts[part]:
                for some in weights:
                    if some[index].grad is not None:
                        some[index].grad.zero_()

        list(self.threads.map(update, range(count)))
        return loss

    def loss(self, examples: Sequence[Example], size: int = 16) -> float:
        """The mean loss over reply tokens."""
        ordered, replies = sorted(examples, key=len), sum(len(example.reply) for example in examples)
        cut = [ordered[at : at + size] for at in range(0, len(ordered), size)]

        def of(index: int) -> float:
            return share_of_loss(self.models[index % len(self.models)], cut[index], replies, bf16=self.bf16)

        return sum(self.threads.map(of, range(len(cut))))

    def save(self, path: Path, progress: Progress) -> None:
        state: dict[str, Any] = {"progress": vars(progress), "model": self.models[0].state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        beside = path.with_name(path.name + ".partial")
        torch.save(state, beside)
        beside.replace(path)

    def load(self, path: Path) -> Progress:
        state = torch.load(path, weights_only=True)
        self.models[0].load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return Progress(**state["progress"])
