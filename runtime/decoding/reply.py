"""One generated reply: its tokens and text as they come, when it ends, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rrt_edge.runtime.decoding.constraint import Allows
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy, Steering
from rrt_edge.runtime.decoding.sampler import Picked, Sampler
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.thought import Piece, ReplyText
from rrt_edge.runtime.system.memory import peak_memory_bytes
from rrt_edge.runtime.system.options import shown

LATEST = 0.2  # what the last token counts for in the chance that the next one leaves behind depth 1


@dataclass(frozen=True)
class Token:
    """One generated token: the text of the answer that it completes, its id, the depth it left at and the gate's value
    there: 1 after the last loop, where nothing is left to choose. `gates` are those of all loops but the last that it
    ran, from the first on; empty where a device was not made to wait for them. `thought` is the text of the thought
    that it completes, or None where it is no token of a thought.

    Where `Sampling.first_loop` asks for it: the id of what the first loop that can be read would have said in its
    place.

    Where `Sampling.logprobs` asks for them: its log probability, and the likeliest tokens with theirs, by id.

    The token that ends a reply comes too, with what text was held back.
    """

    text: str
    id: int
    depth: int
    gate: float
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    thought: str | None = None
    gates: tuple[float, ...] = ()
    first_loop: int | None = None


@dataclass(frozen=True)
class Stats:
    """The cost of a generation. Times are in seconds.

    `block_rows` counts every row through the block from the last prompt token on, rows caught up and drafts that did
    not stand included, and `block_rows_per_token` the same for each token; `steps_per_token` how often the block's
    weights were read for them, which several rows share; `mean_depth` the depths the tokens left at. The first token
    counts as prompt time, the others as decode time; `longest_gap_s` is the longest wait between two tokens. `drafted`
    and `accepted`: the tokens that were drafted, and those of them that stood and were kept; `text_drafted` and
    `text_accepted`: those among them that came from the text, the others from a lesser depth. `device`: what the model
    ran on. `kv_rule`: the KV rule it followed.
    """

    prompt_tokens: int
    generated_tokens: int
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_s: float
    longest_gap_s: float
    mean_depth: float
    block_rows_per_token: float
    steps_per_token: float
    drafted: int
    accepted: int
    peak_memory_bytes: int
    device: str
    kv_rule: str = "exact"
    block_rows: int = 0
    text_drafted: int = 0
    text_accepted: int = 0


@dataclass(frozen=True, repr=False)
class Generation:
    """A generation; `finish_reason` is `stop` (the model, a stop string or a stop id ended it), `length` or
    `cancelled`. `text` is the answer, without the `thought`."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    stats: Stats

    def __repr__(self) -> str:
        thought = f", thought={shown(self.thought)}" if self.thought else ""
        end = f"finish_reason={self.finish_reason!r}, tokens: {len(self.tokens)}"
        return f"Generation(text={shown(self.text)}{thought}, {end})"

    @property
    def thought(self) -> str:
        """What the model thought before it answered; empty where it did not."""
        return thought_of(self.tokens)


def thought_of(tokens: Iterable[Token]) -> str:
    """The text of the thought in some tokens."""
    return "".join(token.thought or "" for token in tokens)


@dataclass
class Drafts:
    """How many tokens were drafted by a lesser depth and from the text, and how many of each stood."""

    depth_drafted: int = 0
    depth_accepted: int = 0
    text_drafted: int = 0
    text_accepted: int = 0


class Reply:
    """A reply under way: `history` holds the tokens of prompt and reply, `finish_reason` is empty until it ends.

    `leaving` is the chance that the next token leaves behind depth 1, as far as the last ones say.
    """

    def __init__(
        self,
        text: ReplyText,
        prompt: Sequence[int],
        sampling: Sampling,
        policy: ExitPolicy,
        room: int,
        ends: Collection[int],
        constraint: Allows | None = None,
        shifts: bool = False,
        device: str = "cpu",
        kv_rule: str = "exact",
        watch: int | None = None,
    ) -> None:
        """`room`: the tokens the context leaves; `ends`: the tokens that end a reply; `shifts`: the oldest tokens make
        room for more; `watch`: the depth whose tokens are told beside the reply's, if any."""
        self.history, self.watch = list(prompt), watch
        most = sampling.most_tokens(len(prompt))
        self._limit = most if shifts else min(most, room)
        self.sampler = Sampler(sampling, len(prompt), ends, constraint, self._limit)
        self._steering = Steering(policy)
        self.drafts = Drafts()
        self.finish_reason = ""
        self.dropped = 0  # tokens at the history's beginning that no cache holds any more
        self._text = text
        self.shifts, self._device, self._kv_rule = shifts, device, kv_rule
        self._ends = ends
        self._prompt_tokens = len(prompt)
        self._depths: list[int] = []
        self.leaving = 1.0
        self._started = self._latest = time.perf_counter()
        self._first = self._longest_gap = 0.0

    @property
    def length(self) -> int:
        """Tokens of the reply so far."""
        return len(self._depths)

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy of the token that comes next."""
        return self._steering.policy(len(self._depths))

    @property
    def remaining(self) -> int:
        """Tokens that it may still have."""
        return self._limit - len(self._depths)

    def take(self, picked: Picked) -> Token:
        """Add a token; sets `finish_reason` where it is the last."""
        token = picked.token
        self.history.append(token)
        self._depths.append(picked.depth)
        self.leaving += LATEST * ((picked.depth == 1) - self.leaving)
        self._tick()
        thinks = self._text.thinks
        piece = Piece("", "" if thinks else None) if token in self._ends else self._text.push(token)
        if token in self._ends or self._text.stopped:
            self.finish_reason = "length" if self.sampler.cut else "stop"
        elif len(self._depths) >= self._limit:
            self.finish_reason = "length"
        if self.finish_reason:
            piece = piece.joined(self._text.end())
        return Token(
            text=piece.answer,
            id=token,
            depth=picked.depth,
            gate=picked.gate,
            logprob=picked.logprob,
            top_logprobs=picked.top,
            thought=piece.thought,
            gates=picked.gates,
            first_loop=picked.first_loop,
        )

    def _tick(self) -> None:
        now = time.perf_counter()
        if len(self._depths) == 1:
            self._first = now - self._started
            self._steering.observe(self._depths[-1], None)
        else:
            self._longest_gap = max(self._longest_gap, now - self._latest)
            self._steering.observe(self._depths[-1], now - self._latest)
        self._latest = now

    def stats(self, block_rows: int, block_steps: int) -> Stats | None:
        """Return the cost of the reply so far, or None before its first token."""
        count = len(self._depths)
        if not count:
            return None
        decode = self._latest - self._started - self._first
        return Stats(
            prompt_tokens=self._prompt_tokens,
            generated_tokens=count,
            prompt_tokens_per_second=round(self._prompt_tokens / self._first, 2),
            decode_tokens_per_second=round((count - 1) / decode, 2) if count > 1 else 0.0,
            time_to_first_token_s=round(self._first, 4),
            longest_gap_s=round(self._longest_gap, 4),
            mean_depth=round(sum(self._depths) / count, 4),
            block_rows_per_token=round(block_rows / count, 4),
            steps_per_token=round(block_steps / count, 4),
            drafted=self.drafts.depth_drafted + self.drafts.text_drafted,
            accepted=self.drafts.depth_accepted + self.drafts.text_accepted,
            text_drafted=self.drafts.text_drafted,
            text_accepted=self.drafts.text_accepted,
            peak_memory_bytes=peak_memory_bytes(),
            device=self._device,
            kv_rule=self._kv_rule,
            block_rows=block_rows,
        )
