"""`Session`: one conversation with a model."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.kv_rules import KVRule
from rrt_edge.runtime.decoding.common_prefix import common_prefix
from rrt_edge.runtime.decoding.decoder import Cancelled, Decoder, Seen, Step
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.pipeline import Pipeline
from rrt_edge.runtime.decoding.reply import Generation, Reply, Stats, Token
from rrt_edge.runtime.decoding.sampler import Picked
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.interfaces import ContextFull, Prompt, ReplyOptions, SamplingFields, Stream, TextModel
from rrt_edge.runtime.loaded import Loaded
from rrt_edge.runtime.running.hidden import on_host
from rrt_edge.runtime.session_file import Conversation, HeldRows, write_conversation
from rrt_edge.runtime.stream import TokenStream

log = logging.getLogger(__name__)


class Session(TextModel):
    """One conversation: its tokens and their keys and values.

    A prompt that begins with what the session holds is continued from there, so that each turn of a chat costs only its
    new tokens. Not for use by two threads at once, but for `Stream.cancel`.
    """

    def __init__(
        self, model: Loaded, kv_rule: KVRule, lazy_prompt: bool, conversation: Conversation | None = None
    ) -> None:
        self._model = model
        self._decoder = Decoder(model.runner, kv_rule)
        self._lazy_prompt = lazy_prompt
        self.finish_reason = ""
        self._ids: list[int] = []  # those fed to the decoder, but for what a reply under way adds
        self._reply: Reply | None = None  # under way
        self._current: weakref.ref[Generator[Token, None, None]] | None = None
        self._stats: Callable[[], Stats | None] = lambda: None  # of the last generation, or the one under way
        if conversation is not None:
            self._resume(conversation)

    def __repr__(self) -> str:
        state = "a reply under way" if self._reply is not None else f"finish_reason={self.finish_reason!r}"
        return f"Session(tokens held: {len(self.ids)}, {state}, kv_rule={self.kv_rule!r})"

    @property
    def kv_rule(self) -> str:
        """The KV rule that it follows."""
        return self._decoder.state.rule.name

    @property
    def ids(self) -> list[int]:
        """The tokens it holds, in order."""
        if self._reply is None:
            return list(self._ids)
        return self._reply.history[self._reply.dropped :][: self._decoder.length]

    def _hold(self, decoder: Decoder[Any, Any], ids: list[int]) -> None:
        """Hold what a decoder was fed in the place of what it held."""
        self._decoder, self._ids = decoder, ids

    def fork(self) -> Session:
        """Another conversation that begins with this one's tokens and shares their keys and values."""
        other = Session(self._model, self._decoder.state.rule, self._lazy_prompt)
        other._hold(self._decoder.fork(), self.ids)
        if other._decoder.length > len(other.ids):  # drafts
            other._decoder.rewind(len(other.ids))
        return other

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens; those that a sliding window has dropped too much behind run again later.

        Raises:
            BadInputError: `length` is not from 0 to the tokens held.
        """
        self._end_other()
        if not 0 <= length <= len(self._ids):
            raise BadInputError(f"length {length}: must be from 0 to the {len(self._ids)} tokens the session holds")
        self._decoder.rewind(length)
        del self._ids[self._decoder.length :]

    def save(self, path: Path | str) -> None:
        """Keep the conversation in a safetensors file that names its bundle; `Model.load_session` goes on with it.

        Raises:
            BadInputError: the file cannot be written.
            RRTEdgeError: the disk is full.
        """
        state = self.fork()._decoder.state  # whole tokens, where a reply is under way
        architecture = self._model.manifest.architecture
        slots, groups = range(1, state.rule.slots(architecture.loops) + 1), range(len(architecture.kv_groups))
        conversation = Conversation(
            ids=self.ids,
            rule=state.rule.name,
            prompt_end=self._decoder.prompt_end,
            positions=state.cache.positions,
            rows=[[HeldRows(*state.cache.rows(slot, group)) for group in groups] for slot in slots],
            waiting=[on_host(rows.all()) for rows in state.waiting],
        )
        write_conversation(Path(path), conversation, self._model.manifest, self._model.context)

    def _resume(self, conversation: Conversation) -> None:
        """Hold what a conversation held, in an empty session of the same bundle and KV rule."""
        decoder = self._decoder
        for slot, groups in enumerate(conversation.rows, 1):
            for group, rows in enumerate(groups):
                positions = conversation.positions[slot - 1]
                decoder.state.cache.restore(slot, group, rows.first, rows.planes, positions)
        for waiting, states in zip(decoder.state.waiting, conversation.waiting, strict=True):
            waiting.add(decoder.runner.hidden(states))
        decoder.prompt_end = conversation.prompt_end
        self._hold(decoder, conversation.ids)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Stream:
        """Reply to a prompt, token by token, as `Model.stream`: only what the session does not hold of it is run."""
        asked = self._model.prepare(prompt, sampling, exit_policy, options)
        reply = self._model.reply(asked.ids, asked.sampling, asked.policy, self._decoder.state.rule, asked.shifts)
        self._end_other()
        self._decoder.cancelled = False
        tokens = self._stream(reply, asked.policy)
        self._current = weakref.ref(tokens)
        return TokenStream(tokens, self._cancel, self._generation)

    def choices(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Generation]:
        """`Sampling.n` replies to one prompt, whose tokens run once; the seed of the i-th is `seed + i`."""
        asked = self._model.prepare(prompt, sampling, exit_policy, options)
        full: ContextFull = "shift" if asked.shifts else "error"
        return [
            self.generate(asked.ids, asked.sampling.choice(index), asked.policy, context_full=full)
            for index in range(asked.sampling.n)
        ]

    def logits(
        self, ids: Sequence[int], count: int, exit_policy: str | ExitPolicy | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Logits [n, V] behind each of the last `count` tokens of a text, some rows at a time: to score what it says.

        Each comes from the depth that the policy lets its token leave at. What the session holds of the text already is
        not run again.

        Raises:
            ContextFullError, BadInputError: as `stream`; or `count` is not from 1 to the text's length.
        """
        policy = self._model.policy(exit_policy)
        text = self._model.checked_ids(list(ids))
        if not 1 <= count <= len(text):
            raise BadInputError(f"count {count}: must be from 1 to the text's {len(text)} tokens")
        self._end_other()
        self._decoder.cancelled = False
        decoder, first = self._decoder, len(text) - count
        self._reuse(text[: first + 1], policy)
        self._ids = []  # until all is fed
        decoder.prefill(text[decoder.length : first], policy)
        yield from decoder.forced(text[first:], policy)
        self._ids = text

    @property
    def stats(self) -> Stats:
        """Statistics of the last generation, or of the one under way so far.

        Raises:
            BadInputError: no token has come yet.
        """
        stats = self._stats()
        if stats is None:
            raise BadInputError("no token was generated in this session yet")
        return stats

    def _generation(self, tokens: Sequence[Token]) -> Generation:
        """The tokens of the last `stream` as one object."""
        return Generation("".join(token.text for token in tokens), tuple(tokens), self.finish_reason, self.stats)

    def _end_other(self) -> None:
        """A session has one reply under way: the one before it ends here."""
        other = None if self._current is None else self._current()
        if other is not None:
            try:
                other.close()
            except ValueError as error:
                raise BadInputError("this session is generating in another thread; fork it, or wait") from error

    def _cancel(self) -> None:
        self._decoder.cancelled = True

    def _stream(self, reply: Reply, policy: ExitPolicy) -> Generator[Token, None, None]:
        decoder, ids = self._decoder, list(reply.history)
        rows_before, steps_before = decoder.block_rows, decoder.block_steps

        def stats_so_far() -> Stats | None:
            return reply.stats(decoder.block_rows - rows_before, decoder.block_steps - steps_before)

        self.finish_reason, self._stats = "", stats_so_far
        try:
            self._reuse(ids, policy)
            self._reply = reply
            log.debug("prompt of %d tokens, %d of them held", len(ids), decoder.length)
            decoder.prefill(ids[decoder.length : -1], policy, self._lazy_prompt and policy.may_leave)
            rows_before, steps_before = decoder.block_rows, decoder.block_steps
            for picked in self._picked(reply, policy):
                token = reply.take(picked)
                self.finish_reason = reply.finish_reason
                yield token
                if reply.finish_reason:
                    break
        except Cancelled:
            self.finish_reason = "cancelled"
            log.debug("cancelled after %d tokens", reply.length)
        finally:
            decoder.rewind(len(reply.history) - 1 - reply.dropped)  # drafts may be further
            self._ids, self._reply = reply.history[reply.dropped :][: decoder.length], None
            stats = stats_so_far()
            self._stats = lambda: stats
            if not reply.finish_reason:  # the reader stopped asking
                self.finish_reason = "cancelled"

    def _picked(self, reply: Reply, policy: ExitPolicy) -> Iterator[Picked]:
        """The tokens of a reply, without end; each is fed when the next is asked for."""
        decoder = self._decoder
        pipeline = self._model.pipeline(decoder.state, policy, leaves=True, watch=reply.watch)
        while True:
            if self._make_room(reply, policy) and pipeline is not None:
                pipeline.forget()
            is_free = pipeline is not None and pipeline.is_free
            room = min(reply.remaining, self._model.context - (len(reply.history) - 1 - reply.dropped))
            if pipeline is not None and (not pipeline.is_empty or (is_free and self._enters(reply, pipeline, room))):
                yield self._piped(reply, pipeline, room)
                continue
            if pipeline is not None:
                pipeline.forget()
                if copied := pipeline.copied(reply.history, room, reply.leaving):
                    yield from self._together(reply, pipeline, copied)
                    continue
            started = time.perf_counter()
            step = decoder.step(reply.history[-1], reply.policy, reply.watch)
            if pipeline is not None and step.depth == 1 and policy.may_leave:
                self._model.drafting.stepped_together(1, time.perf_counter() - started)
            picked = _pick(reply, step)
            if pipeline is not None and (is_free or policy.may_leave):
                pipeline.took(False, time.perf_counter() - started)
            yield picked

    def _together(self, reply: Reply, pipeline: Pipeline, copied: Sequence[int]) -> Iterator[Picked]:
        """The next token, and those behind it for which drafts from the text stand: all run depth 1 in one step. Behind
        a token that goes deeper nothing counts any more: where the model has to think, copies are seldom right."""
        decoder, drafts, began = self._decoder, reply.drafts, time.perf_counter()
        done = decoder.together([reply.history[-1], *copied])
        pipeline.ran(len(copied))
        spent, tokens = time.perf_counter() - began, 0
        drafts.text_drafted += len(copied)
        try:
            for index, draft in enumerate([*copied, None]):
                began, policy, row = time.perf_counter(), reply.policy, decoder.length - len(copied) + index
                gate, logits = float(done.gate[index]), done.logits[index]
                if gate >= policy.threshold:
                    step = Step(logits, 1, gate, (gate,))
                else:
                    decoder.rewind(row)
                    step = decoder.go_on(gate, policy, Seen(reply.watch, (gate,), logits if reply.watch == 1 else None))
                picked = _pick(reply, step, pipeline, draft)
                stands = picked.token == draft
                drafts.text_accepted += stands and step.depth == 1
                if step.depth == 1 and not stands:
                    decoder.rewind(row)
                spent, tokens = spent + time.perf_counter() - began, tokens + 1
                yield picked
                if step.depth > 1 or not stands:
                    return
        finally:
            for _ in range(tokens):
                pipeline.took(False, spent / tokens)

    def _enters(self, reply: Reply, pipeline: Pipeline, room: int) -> bool:
        """Whether the next token had better enter the pipeline, which it then does."""
        return pipeline.enter(reply.history, reply.drafts, room) or pipeline.pays()

    def _piped(self, reply: Reply, pipeline: Pipeline, room: int) -> Picked:
        """The next token through the pipeline; `room`: tokens that may follow."""
        began, threshold = time.perf_counter(), reply.policy.threshold
        picked = pipeline.ready(reply.history, reply.sampler, reply.drafts, threshold)
        while picked is None:
            started = time.perf_counter()
            done = self._decoder.advance(pipeline.parts(threshold=threshold))
            if all(len(part.hidden) == 1 for part in done):
                self._model.drafting.stepped(len(done), time.perf_counter() - started)
            picked = pipeline.take(done, reply.history, reply.sampler, reply.drafts, room, threshold)
        pipeline.took(True, time.perf_counter() - began)
        return picked

    def _make_room(self, reply: Reply, policy: ExitPolicy) -> bool:
        """Drop the older half of the tokens where the context is full and the reply may shift; whether it did."""
        length = len(reply.history) - 1 - reply.dropped  # fed, but for drafts
        if not reply.shifts or length < max(self._model.context, 2):
            return False
        dropped = length - length // 2
        log.info("the context of %d tokens is full: the oldest %d are dropped", self._model.context, dropped)
        reply.dropped += dropped
        self._decoder.rewind(0)
        self._decoder.prefill(reply.history[reply.dropped : -1], policy)
        return True

    def _reuse(self, ids: list[int], policy: ExitPolicy) -> None:
        """Keep the rows of the longest common beginning; the last token of a prompt is always fed anew.

        A reproducible model keeps those only that it would run again in the same calls.
        """
        shared = common_prefix(self._ids, ids[:-1])
        if self._model.reproducible:
            shared = self._decoder.state.repeatable(shared, policy.depth)
        self._decoder.rewind(shared)


def _pick(reply: Reply, step: Step, pipeline: Pipeline | None = None, draft: int | None = None) -> Picked:
    """The token that a step leads to; `draft`: what is on its way in its place."""
    sampler, history = reply.sampler, reply.history
    watched = None if step.watched is None else sampler.pick(step.watched, history)
    token = sampler.pick(step.logits, history)
    if pipeline is not None:
        token = pipeline.verdict(token, draft)
    return sampler.picked(token, step.depth, step.gate, step.logits, step.gates, watched)
