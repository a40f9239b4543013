"""`Model`: a bundle in memory. `Session`: one conversation with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.chat import ChatTemplate
from rrt_edge.runtime.decoder import Decoder
from rrt_edge.runtime.errors import BadInputError, BundleError, ContextFullError
from rrt_edge.runtime.graph import Graph
from rrt_edge.runtime.lossless import DraftLength, Lossless
from rrt_edge.runtime.manifest import RULES, KVRule, Manifest
from rrt_edge.runtime.policy import ExitPolicy
from rrt_edge.runtime.reply import Generation, Reply, Stats, Token
from rrt_edge.runtime.sampling import Sampling
from rrt_edge.runtime.weight_cache import GRAPH_FILES, packed_graph

DEFAULT_CONTEXT = 4096  # tokens, or the model's own where that is less
Message = Mapping[str, str]
Prompt = str | Sequence[int]


class Model:
    """A loaded bundle, shared by any number of sessions. Use it as a context manager or call `close`."""

    def __init__(
        self, manifest: Manifest, graph: Graph, tokenizer: Tokenizer, template: ChatTemplate | None, context: int
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.template = template
        self.context = context  # tokens a conversation may hold
        self.draft_length = DraftLength(manifest.architecture.loops)
        self._graph: Graph | None = graph

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        *,
        context: int | None = None,
        threads: int | None = None,
        weight_cache: Path | str | None = None,
    ) -> Model:
        """Load a bundle folder, checking sizes and hashes of its files.

        Args:
            bundle: the folder `rrt-edge export` wrote.
            context: tokens a conversation may hold; 4096 or the model's own limit by default, whichever is less.
            threads: onnxruntime's threads; one for each core by default.
            weight_cache: a folder that keeps the weights as this machine's kernels want them, filled at the first load:
                they are then mapped from there, shared by all processes, instead of packed in each one's memory. It
                takes about twice the bundle on disk.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            BadInputError: the context is longer than the model's, threads is not positive, or the weight cache cannot
                be written.
        """
        folder = Path(bundle)
        manifest = Manifest.read(folder)
        limit = manifest.architecture.context_length
        if context is not None and not 1 <= context <= limit:
            raise BadInputError(f"context {context}: must be from 1 to the model's {limit} tokens")
        if threads is not None and threads < 1:
            raise BadInputError(f"threads {threads}: must be 1 or more")
        if weight_cache is None:
            manifest.check_hashes(folder)
            graph_folder = folder
        else:
            manifest.check_hashes(folder, but=GRAPH_FILES)  # the cache's are read in their place
            graph_folder = packed_graph(folder, manifest, Path(weight_cache))
        context = min(DEFAULT_CONTEXT, limit) if context is None else context
        graph = Graph(graph_folder, manifest.architecture, manifest.kv_rule, threads, context)
        return cls(manifest, graph, read_tokenizer(folder), ChatTemplate.from_folder(folder), context)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights; sessions of this model cannot go on."""
        self._graph = None

    @property
    def graph(self) -> Graph:
        if self._graph is None:
            raise BadInputError("this model is closed; load the bundle again")
        return self._graph

    @property
    def loops(self) -> int:
        return self.manifest.architecture.loops

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens the tokenizer adds."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the bundle's chat template, ready for the assistant's turn.

        Raises:
            BadInputError: the bundle has no chat template, or it refuses these messages.
        """
        if self.template is None:
            raise BadInputError("this bundle has no chat template; use plain prompts (--raw)")
        ids: list[int] = self.tokenizer.encode(self.template.render(messages), add_special_tokens=False).ids
        return ids

    def policy(self, exit_policy: str | ExitPolicy) -> ExitPolicy:
        """An exit policy from its text form, checked against this model."""
        if isinstance(exit_policy, ExitPolicy):
            return exit_policy
        gate = self.manifest.gate
        return ExitPolicy.parse(exit_policy, self.loops, gate.threshold, gate.points)

    def session(self, *, kv_rule: KVRule | None = None, lazy_prompt: bool | None = None) -> Session:
        """A new conversation.

        Args:
            kv_rule: where it is to be another than the one the model was trained for.
            lazy_prompt: under `exact` and a threshold, prompts run loop 1 alone until a token goes deeper: the first
                token comes sooner, and the deeper loops' work on the prompt in a gap later or never. By default where
                the bundle has a calibrated threshold.
        """
        lazy = self.manifest.gate.threshold is not None if lazy_prompt is None else lazy_prompt
        return Session(self, self.kv_rule(kv_rule), lazy)

    def kv_rule(self, asked: KVRule | None) -> KVRule:
        """The rule asked for, or the bundle's own."""
        if asked is not None and asked not in RULES:
            raise BadInputError(f"kv-rule {asked!r}: choose from {', '.join(RULES)}")
        if asked == "skip" and self.manifest.architecture.windows:
            raise BadInputError("kv-rule skip: does not go with this model, whose attention slides over a window")
        if asked == "propagate" and not self.graph.propagates:
            raise BadInputError(
                "kv-rule propagate: this bundle's graph has no room for it; export a model trained for it"
            )
        return asked or self.manifest.kv_rule

    def checked_prompt(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, which the context must hold with room for a reply.

        Raises:
            ContextFullError, BadInputError: as `stream`.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        vocabulary = self.manifest.architecture.vocabulary
        if not ids:
            raise BadInputError("the prompt is empty; give at least one token")
        unknown = [token for token in ids if not 0 <= token < vocabulary]
        if unknown:
            raise BadInputError(f"token id {unknown[0]} is not among the model's {vocabulary} tokens")
        if len(ids) >= self.context:
            message = f"the prompt has {len(ids)} tokens and the context holds {self.context}, the reply included"
            raise ContextFullError(f"{message}; shorten the prompt or start a new conversation")
        return ids

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Iterator[Token]:
        """Generate from a prompt (text, or token ids), yielding tokens as they come.

        Raises:
            ContextFullError: the prompt does not fit the context.
            BadInputError: an empty prompt, a token id the model does not have, a wrong option.
        """
        return self.session().stream(prompt, sampling, exit_policy)

    def chat(
        self, messages: Sequence[Message], sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Iterator[Token]:
        """Like `stream`, for the assistant's next turn in a conversation of `{"role": ..., "content": ...}`."""
        return self.stream(self.encode_chat(messages), sampling, exit_policy)

    def generate(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Generation:
        """Like `stream`, but returns once all is generated, with statistics."""
        session = self.session()
        tokens = tuple(session.stream(prompt, sampling, exit_policy))
        return session.generation(tokens)


class Session:
    """One conversation: its tokens and their keys and values.

    A prompt that begins with what the session holds is continued from there, so that each turn of a chat costs only its
    new tokens. Not for use by two threads at once.
    """

    def __init__(self, model: Model, kv_rule: KVRule, lazy_prompt: bool) -> None:
        self.model = model
        self.decoder = Decoder(model.graph, kv_rule)
        self.lazy_prompt = lazy_prompt
        self.ids: list[int] = []  # those fed to the decoder
        self.finish_reason = ""
        self._stats: Stats | None = None

    def fork(self) -> Session:
        """Another conversation that begins with this one's tokens and shares their keys and values."""
        other = Session(self.model, self.decoder.state.rule, self.lazy_prompt)
        other.decoder = self.decoder.fork()
        other.ids = list(self.ids)
        return other

    def chat(
        self, messages: Sequence[Message], sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Iterator[Token]:
        """Generate the assistant's next turn."""
        return self.stream(self.model.encode_chat(messages), sampling, exit_policy)

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Iterator[Token]:
        """Generate from a prompt; the options are checked now, the model runs as tokens are asked for."""
        sampling, policy = sampling or Sampling(), self.model.policy(exit_policy)
        if policy.lossless and self.decoder.state.rule != "exact":
            raise BadInputError(f"exit policy lossless goes with the KV rule exact, not {self.decoder.state.rule}")
        return self._stream(self.model.checked_prompt(prompt), sampling, policy)

    def logits(
        self, ids: Sequence[int], count: int, exit_policy: str | ExitPolicy = "full"
    ) -> Iterator[NDArray[np.float32]]:
        """Logits [n, V] behind each of the last `count` tokens of a text, some rows at a time: to score what it says.

        Each comes from the depth that the policy lets its token leave at. What the session holds of the text already is
        not run again.

        Raises:
            ContextFullError, BadInputError: as `stream`; or `count` is not from 1 to the text's length.
        """
        policy = self.model.policy(exit_policy)
        text = self.model.checked_prompt(ids)
        if not 1 <= count <= len(text):
            raise BadInputError(f"count {count}: must be from 1 to the text's {len(text)} tokens")
        decoder, first = self.decoder, len(text) - count
        self._reuse(text[: first + 1])
        self.ids = []  # until all is fed
        decoder.prefill(text[decoder.length : first], policy)
        yield from decoder.forced(text[first:], policy)
        self.ids = text

    @property
    def stats(self) -> Stats:
        """Statistics of the last generation.

        Raises:
            BadInputError: nothing was generated yet.
        """
        if self._stats is None:
            raise BadInputError("nothing was generated in this session yet")
        return self._stats

    def generation(self, tokens: Sequence[Token]) -> Generation:
        """The tokens of the last `stream` as one object."""
        return Generation("".join(token.text for token in tokens), tuple(tokens), self.finish_reason, self.stats)

    def _stream(self, ids: list[int], sampling: Sampling, policy: ExitPolicy) -> Iterator[Token]:
        model, decoder = self.model, self.decoder
        reply = Reply(model.tokenizer, ids, sampling, model.context - len(ids), model.manifest.eos_token_ids)
        self.finish_reason = ""
        rows_before = decoder.block_rows
        try:
            self._reuse(ids)
            decoder.prefill(ids[decoder.length : -1], policy, self.lazy_prompt and policy.may_leave)
            rows_before = decoder.block_rows
            for picked in self._picked(reply, policy):
                token = reply.take(*picked)
                self.finish_reason = reply.finish_reason
                if self.finish_reason:
                    self._stats = reply.stats(decoder.block_rows - rows_before)
                yield token
                if reply.finish_reason:
                    break
        finally:
            decoder.rewind(len(reply.history) - 1)  # lossless mode may have gone on
            self.ids = reply.history[: decoder.length]
            if not reply.finish_reason:  # the reader stopped asking
                self._stats = reply.stats(decoder.block_rows - rows_before) or self._stats

    def _picked(self, reply: Reply, policy: ExitPolicy) -> Iterator[tuple[int, int, float]]:
        """The tokens of a reply as (token, depth, gate), without end; each is fed when the next is asked for."""
        if policy.lossless and self.model.loops > 1:
            manifest = self.model.manifest
            lossless = Lossless(self.decoder, self.model.draft_length, manifest.eos_token_ids, manifest.gate.trained)
            while True:
                yield from lossless.round(reply.history, reply.sampler, reply.drafts)
        while True:
            step = self.decoder.step(reply.history[-1], policy.at(reply.length))
            yield reply.sampler.pick(step.logits, reply.history), step.depth, step.gate

    def _reuse(self, ids: list[int]) -> None:
        """Keep the rows of the longest common beginning; the last token of a prompt is always fed anew."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        common = next((index for index, (held, asked) in enumerate(pairs) if held != asked), None)
        if common is None:
            common = min(len(self.ids), len(ids) - 1)
        self.decoder.rewind(common)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{folder / 'tokenizer.json'}: cannot be read ({error})") from error
