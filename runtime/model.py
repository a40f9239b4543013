"""`Model`: a bundle in memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.chat_template import ChatTemplate, Message
from rrt_edge.runtime.bundle.manifest import RULES, KVRule, Manifest
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.grammar import Grammars
from rrt_edge.runtime.decoding.lossless import DraftLength
from rrt_edge.runtime.decoding.reply import Generation, Reply
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError, BundleError, ContextFullError, DeviceError
from rrt_edge.runtime.library.store import find_bundle
from rrt_edge.runtime.running.devices.providers import VARIABLE
from rrt_edge.runtime.running.opening import open_on
from rrt_edge.runtime.running.runner import Runner
from rrt_edge.runtime.running.weight_cache import GRAPH_FILES, packed_graph
from rrt_edge.runtime.session import ContextFull, Session
from rrt_edge.runtime.session_file import load_session
from rrt_edge.runtime.stream import Stream

DEFAULT_CONTEXT = 4096  # tokens, or the model's own where that is less
Prompt = str | Sequence[int]
log = logging.getLogger(__name__)


class Model:
    """A loaded bundle, shared by any number of sessions and threads. Use it as a context manager or call `close`."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        context: int,
        device: str = "cpu",
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.template = template
        self.context = context  # tokens a conversation may hold
        self.device = device  # what it runs on
        self.draft_length = DraftLength(manifest.architecture.loops)
        self._runner: Runner | None = runner

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        *,
        context: int | None = None,
        threads: int | None = None,
        weight_cache: Path | str | None = None,
        device: str | None = None,
        kv_budget_bytes: int | None = None,
    ) -> Model:
        """Load a bundle folder, checking sizes and hashes of its files.

        Args:
            bundle: the folder `rrt-edge export` wrote, or the name of an installed one (`rrt-edge list`).
            context: tokens a conversation may hold; 4096 or the model's own limit by default, whichever is less.
            threads: onnxruntime's threads; one for each core by default.
            weight_cache: a folder that keeps the weights as this machine's kernels want them, filled at the first load:
                they are then mapped from there, shared by all processes, instead of packed in each one's memory. It
                takes about twice the bundle on disk. For the CPU.
            device: `cpu`, `webgpu`, `cuda`, `dml`, `openvino`, `coreml`, `qnn`, or `auto`: the one that was fastest in
                a short trial, which is made once for each machine and bundle and logged. By default what the
                environment variable RRT_EDGE_DEVICE says, else `auto`.
            kv_budget_bytes: what the keys and values of all conversations may take; by default what there is.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            DeviceError: a device named is not there, or cannot run this bundle. `auto` takes the CPU and warns.
            BadInputError: the context is longer than the model's, threads is not positive, or the weight cache cannot
                be written.
        """
        folder, started = find_bundle(bundle), time.perf_counter()
        manifest = Manifest.read(folder)
        limit = manifest.architecture.context_length
        if context is not None and not 1 <= context <= limit:
            raise BadInputError(f"context {context}: must be from 1 to the model's {limit} tokens")
        if threads is not None and threads < 1:
            raise BadInputError(f"threads {threads}: must be 1 or more")
        context = min(DEFAULT_CONTEXT, limit) if context is None else context
        device = device or os.environ.get(VARIABLE) or "auto"
        graph_folder = None
        if weight_cache is None:
            manifest.check_hashes(folder)
        else:
            if device not in ("auto", "cpu"):
                raise BadInputError(f"weight-cache: is for the CPU, not for {device}")
            device = "cpu"
            manifest.check_hashes(folder, but=GRAPH_FILES)  # the cache's are read in their place
            graph_folder = packed_graph(folder, manifest, Path(weight_cache))
        runner, device = open_on(
            device,
            folder,
            manifest,
            context,
            threads=threads,
            kv_budget_bytes=kv_budget_bytes,
            graph_folder=graph_folder,
        )  # fmt: skip
        model = cls(manifest, runner, read_tokenizer(folder), ChatTemplate.from_folder(folder), context, device)
        log.info("%s: loaded on %s in %.2f s, context %d", folder, device, time.perf_counter() - started, context)
        return model

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights, and what sessions hold on a device; sessions of this model cannot go on."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    @property
    def runner(self) -> Runner:
        if self._runner is None:
            raise BadInputError("this model is closed; load the bundle again")
        return self._runner

    @property
    def loops(self) -> int:
        return self.manifest.architecture.loops

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens the tokenizer adds."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[Message], most: int | None = None) -> list[int]:
        """Token ids of a conversation in the bundle's chat template, ready for the assistant's turn.

        Args:
            most: leave out the oldest messages, but for a system's and the last, until there are no more tokens.

        Raises:
            BadInputError: the bundle has no chat template, or it refuses these messages.
        """
        if self.template is None:
            raise BadInputError("this bundle has no chat template; use plain prompts (--raw)")
        messages = list(messages)
        while True:
            ids: list[int] = self.tokenizer.encode(self.template.render(messages), add_special_tokens=False).ids
            first = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
            if most is None or len(ids) <= most or first >= len(messages) - 1:
                return ids
            del messages[first : first + 2]  # a question and its answer

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
        if asked == "propagate" and self.device == "cpu" and asked not in self.runner.rules:
            raise BadInputError(
                "kv-rule propagate: this bundle's graph has no room for it; export a model trained for it"
            )
        rule = asked or self.manifest.kv_rule
        if rule not in self.runner.rules:
            raise DeviceError(f"kv-rule {rule}: runs on the CPU only; use device cpu")
        return rule

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

    def reply(self, ids: Sequence[int], sampling: Sampling, policy: ExitPolicy, shifts: bool = False) -> Reply:
        """A reply to a checked prompt, about to begin; `shifts`: it may be longer than the context.

        Raises:
            BadInputError: an option names a token that the model does not have, or a grammar cannot be followed.
        """
        vocabulary = self.manifest.architecture.vocabulary
        for name, tokens in (("logit-bias", sampling.logit_bias), ("stop-ids", sampling.stop_ids)):
            unknown = [token for token in tokens if token >= vocabulary]
            if unknown:
                raise BadInputError(f"{name}: token id {unknown[0]} is not among the model's {vocabulary} tokens")
        constraint = None if sampling.grammar is None else self._grammars.constraint(sampling.grammar)
        room, ends = self.context - len(ids), self.manifest.eos_token_ids
        return Reply(self.tokenizer, ids, sampling, policy, room, ends, constraint, shifts, self.device)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.manifest.architecture.vocabulary, self.manifest.eos_token_ids)

    def load_session(self, path: Path | str) -> Session:
        """The conversation that `Session.save` kept: it goes on without running its tokens again.

        Raises:
            BadInputError: the file cannot be read, or is of another bundle.
        """
        return load_session(self, Path(path))

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        exit_policy: str | ExitPolicy = "full",
        *,
        context_full: ContextFull = "error",
    ) -> Stream:
        """Generate from a prompt (text, or token ids), in a conversation of its own; as `Session.stream`."""
        return self.session().stream(prompt, sampling, exit_policy, context_full=context_full)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        exit_policy: str | ExitPolicy = "full",
        *,
        context_full: ContextFull = "error",
    ) -> Stream:
        """Like `stream`, for the assistant's next turn in a conversation of `{"role": ..., "content": ...}`."""
        return self.session().chat(messages, sampling, exit_policy, context_full=context_full)

    def generate(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> Generation:
        """Like `stream`, but returns once all is generated, with statistics."""
        return self.session().generate(prompt, sampling, exit_policy)

    def choices(
        self, prompt: Prompt, sampling: Sampling | None = None, exit_policy: str | ExitPolicy = "full"
    ) -> list[Generation]:
        """Like `generate`, `Sampling.n` replies to one prompt, whose tokens run once."""
        return self.session().choices(prompt, sampling, exit_policy)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{folder / 'tokenizer.json'}: cannot be read ({error})") from error
