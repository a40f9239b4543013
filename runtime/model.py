"""`Model`: a bundle in memory. `Session`: one conversation with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer

from rrt_edge.runtime.chat import ChatTemplate
from rrt_edge.runtime.decoder import Decoder
from rrt_edge.runtime.errors import BadInputError, BundleError, ContextFullError
from rrt_edge.runtime.graph import Graph
from rrt_edge.runtime.manifest import Manifest
from rrt_edge.runtime.memory import peak_memory_bytes
from rrt_edge.runtime.policy import ExitPolicy
from rrt_edge.runtime.sampling import Sampler, Sampling
from rrt_edge.runtime.text import TextStream

DEFAULT_CONTEXT = 4096  # tokens, or the model's own where that is less
Message = Mapping[str, str]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Token:
    """One generated token: the text it completes, its id, the depth it left at and the gate's value there.

    The token that ends a reply comes too, with what text was held back.
    """

    text: str
    id: int
    depth: int
    gate: float


@dataclass(frozen=True)
class Stats:
    """What a generation cost. Times in seconds.

    `block_rows_per_token` counts every row through the block from the last prompt token on, rows caught up included;
    `mean_depth` the depths the tokens left at. The first token counts as prompt time, the others as decode time.
    """

    prompt_tokens: int
    generated_tokens: int
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_s: float
    mean_depth: float
    block_rows_per_token: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Generation:
    """A finished generation; `finish_reason` is `stop` (the model or a stop string ended it) or `length`."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    stats: Stats


class Model:
    """A loaded bundle, shared by any number of sessions. Use it as a context manager or call `close`."""

    def __init__(self, manifest: Manifest, graph: Graph, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.template = template
        self.context = min(DEFAULT_CONTEXT, manifest.architecture.context_length)
        self._graph: Graph | None = graph

    @classmethod
    def load(cls, bundle: Path | str, *, context: int | None = None, threads: int | None = None) -> Model:
        """Load a bundle folder, checking sizes and hashes of its files.

        Args:
            bundle: the folder `rrt-edge export` wrote.
            context: tokens a conversation may hold; 4096 or the model's own limit by default, whichever is less.
            threads: onnxruntime's threads; one for each core by default.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            BadInputError: the context is longer than the model's, or threads is not positive.
        """
        folder = Path(bundle)
        manifest = Manifest.read(folder)
        limit = manifest.architecture.context_length
        if context is not None and not 1 <= context <= limit:
            raise BadInputError(f"context {context}: must be from 1 to the model's {limit} tokens")
        if threads is not None and threads < 1:
            raise BadInputError(f"threads {threads}: must be 1 or more")
        manifest.check_hashes(folder)
        graph = Graph(folder, manifest.architecture, threads)
        model = cls(manifest, graph, read_tokenizer(folder), ChatTemplate.from_folder(folder))
        if context is not None:
            model.context = context
        return model

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
        return ExitPolicy.parse(exit_policy, self.loops, self.manifest.gate.threshold)

    def session(self) -> Session:
        """A new conversation."""
        return Session(self)

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

    def __init__(self, model: Model) -> None:
        self.model = model
        self.decoder = Decoder(model.graph)
        self.ids: list[int] = []  # those fed to the decoder
        self.finish_reason = ""
        self._stats: Stats | None = None

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
        ids = self.model.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(ids)
        return self._stream(ids, sampling, policy)

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

    def _check(self, ids: Sequence[int]) -> None:
        context, vocabulary = self.model.context, self.model.manifest.architecture.vocabulary
        if not ids:
            raise BadInputError("the prompt is empty; give at least one token")
        unknown = [token for token in ids if not 0 <= token < vocabulary]
        if unknown:
            raise BadInputError(f"token id {unknown[0]} is not among the model's {vocabulary} tokens")
        if len(ids) >= context:
            message = f"the prompt has {len(ids)} tokens and the context holds {context}, the reply included"
            raise ContextFullError(f"{message}; shorten the prompt or start a new conversation")

    def _stream(self, ids: list[int], sampling: Sampling, policy: ExitPolicy) -> Iterator[Token]:
        clock, decoder, ends = _Clock(), self.decoder, self.model.manifest.eos_token_ids
        sampler, text = Sampler(sampling), TextStream(self.model.tokenizer, sampling.stop)
        limit = min(sampling.max_tokens, self.model.context - len(ids))
        history, depths = list(ids), list[int]()
        self.finish_reason = ""
        try:
            self._reuse(ids)
            decoder.prefill(ids[decoder.length : -1], policy)
            rows_before = decoder.block_rows
            while not self.finish_reason:
                step = decoder.step(history[-1], policy)
                token = sampler.pick(step.logits, history)
                history.append(token)
                depths.append(step.depth)
                clock.tick()
                piece = "" if token in ends else text.push(token)
                if token in ends or text.stopped:
                    self.finish_reason = "stop"
                elif len(depths) >= limit:
                    self.finish_reason = "length"
                if self.finish_reason:
                    piece += text.flush()
                    self._stats = clock.stats(len(ids), depths, decoder.block_rows - rows_before)
                yield Token(piece, token, step.depth, step.gate)
        finally:
            self.ids = history[: decoder.length]
            if depths and not self.finish_reason:  # the reader stopped asking
                self._stats = clock.stats(len(ids), depths, decoder.block_rows - rows_before)

    def _reuse(self, ids: list[int]) -> None:
        """Keep the rows of the longest common beginning; the last token of a prompt is always fed anew."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        common = next((index for index, (held, asked) in enumerate(pairs) if held != asked), None)
        if common is None:
            common = min(len(self.ids), len(ids) - 1)
        self.decoder.rewind(common)


class _Clock:
    """Times of one generation."""

    def __init__(self) -> None:
        self.started = self.latest = time.perf_counter()
        self.first = 0.0

    def tick(self) -> None:
        self.latest = time.perf_counter()
        self.first = self.first or self.latest - self.started

    def stats(self, prompt_tokens: int, depths: Sequence[int], rows: int) -> Stats:
        decode = self.latest - self.started - self.first
        return Stats(
            prompt_tokens=prompt_tokens,
            generated_tokens=len(depths),
            prompt_tokens_per_second=round(prompt_tokens / self.first, 2),
            decode_tokens_per_second=round((len(depths) - 1) / decode, 2) if len(depths) > 1 else 0.0,
            time_to_first_token_s=round(self.first, 4),
            mean_depth=round(sum(depths) / len(depths), 4),
            block_rows_per_token=round(rows / len(depths), 4),
            peak_memory_bytes=peak_memory_bytes(),
        )


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{folder / 'tokenizer.json'}: cannot be read ({error})") from error
