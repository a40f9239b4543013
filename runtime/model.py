"""`Model`: a bundle in memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.declared import check_tokenizer
from rrt_edge.runtime.bundle.kv_rule_names import LoadRule, RunRuleName
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.messages import Message
from rrt_edge.runtime.bundle.template_probes import LOSSES
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.decoding.default_sampling import default_sampling
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Generation
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.interfaces import Prompt, ReplyOptions, SamplingFields, Stream, TextModel
from rrt_edge.runtime.library.store import find_bundle
from rrt_edge.runtime.loaded import Holder, Loaded
from rrt_edge.runtime.running.devices.providers import VARIABLE, device_for
from rrt_edge.runtime.running.kv_choice import fitting_rule
from rrt_edge.runtime.running.load_options import LoadOptions
from rrt_edge.runtime.running.opening import open_on
from rrt_edge.runtime.running.weight_cache import GRAPH_FILES, packed_graph
from rrt_edge.runtime.session import Session
from rrt_edge.runtime.session_file import Conversation, read_conversation
from rrt_edge.runtime.system.names import says_meant
from rrt_edge.runtime.system.options import shown

DEFAULT_CONTEXT = 4096  # tokens, or the model's own where that is less
log = logging.getLogger(__name__)


class Model(TextModel, Holder):
    """A loaded bundle, shared by any number of sessions and threads. Use it as a context manager or call `close`."""

    _name: str  # of its bundle

    def __init__(self, *bundle: object, **options: object) -> None:
        """A model comes from `Model.load`.

        Raises:
            BadInputError: always.
        """
        given = [*map(shown, bundle[:1]), *(f"{name}=..." for name in options)] or ["..."]
        raise BadInputError(f"Model(): a bundle is loaded with Model.load({', '.join(given)})")

    @classmethod
    def _of(cls, loaded: Loaded, name: str) -> Self:
        """The model of what is loaded from a folder of this name."""
        model = cls.__new__(cls)
        model._loaded, model._name = loaded, name
        return model

    def __repr__(self) -> str:
        return (
            f"Model({self._name!r}, {self.manifest.architecture.family}, loops={self.loops}, context={self.context}, "
            f"device={self.device!r}, kv_rule={self.kv_rule!r}{'' if self._loaded.is_open else ', closed'})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights, and what sessions hold on a device; sessions of this model cannot go on."""
        self._loaded.close()

    @classmethod
    @says_meant
    def load(
        cls,
        bundle: Path | str,
        *,
        context: int | None = None,
        threads: int | None = None,
        weight_cache: Path | str | None = None,
        device: str | None = None,
        kv_budget_bytes: int | None = None,
        kv_rule: LoadRule | None = None,
        mmap: bool = True,
        reproducible: bool = False,
    ) -> Self:
        """Load a bundle folder, checking sizes and hashes of its files.

        Args:
            bundle: the folder `rrt-edge export` wrote, or the name of an installed one (`rrt-edge list`).
            context: tokens a conversation may hold; 4096 or the model's own limit by default, whichever is less.
            threads: how many onnxruntime computes with; by default one for each physical core that the process may
                use, and no more than a container's quota, rounded up, has processor time for.
            weight_cache: a folder that keeps the weights as this machine's kernels want them, filled at the first load:
                they are then mapped from there, shared by all processes, instead of packed in each one's memory. It
                takes about twice the bundle on disk. For the CPU.
            device: `cpu`, `webgpu`, `cuda`, `dml`, `openvino`, `coreml`, `qnn`, or `auto`: the one that was fastest in
                a short trial, which is made once for each machine and bundle and logged. By default what the
                environment variable RRT_EDGE_DEVICE says, else `auto`.
            kv_budget_bytes: what the keys and values of all conversations may take; by default what there is.
            kv_rule: of conversations that name none; by default the one the bundle was trained for. `last`: one slot of
                keys and values for all loops, on any bundle of several loops without sliding windows, a loop's part of
                the memory, and other logits (docs/engine.md). `auto`: the bundle's own where the keys and values of a
                whole context fit into half of the memory that is free once the weights are loaded, and into
                `kv_budget_bytes`; else `last`, where that goes. The choice is logged, and in `Stats`. Another rule than
                `exact` runs on the CPU.
            mmap: map the weights from their file, which is fast and shares memory with other processes. A mapped file
                that is cut ends the process (SIGBUS), and one that is overwritten in place changes the model. False
                reads them into memory; for the CPU.
            reproducible: a reply depends on its prompt, sampling, exit policy and KV rule alone, to the last bit: not
                on other requests, on what a conversation or the engine ran before, or on drafts. By default rows are
                computed together where that is faster, which changes the logits of quantised weights slightly
                (docs/engine.md). Requests of an engine do not share the work then, `lossless` runs at full depth,
                prompts are not lazy, and a conversation runs the replies it held again as part of the next prompt.
                For the CPU, the same number of threads and the same onnxruntime; not for exit policies that follow
                the clock.

        Raises:
            BundleError: the bundle is missing, damaged or of another version.
            DeviceError: a device named is not there, or cannot run this bundle. `auto` takes the CPU and warns.
            BadInputError: the context is longer than the model's, threads is not positive, or the weight cache cannot
                be written.
        """
        cache = None if weight_cache is None else Path(weight_cache)
        options = LoadOptions(context, threads, cache, device, kv_budget_bytes, kv_rule, mmap, reproducible)
        folder, started = find_bundle(bundle), time.perf_counter()
        manifest = Manifest.read(folder)
        limit = manifest.architecture.context_length
        if context is not None and not 1 <= context <= limit:
            raise BadInputError(f"context {context}: must be from 1 to the model's {limit} tokens")
        context = min(DEFAULT_CONTEXT, limit) if context is None else context
        device = device_for(device or os.environ.get(VARIABLE), [kv_rule]) or "auto"
        ChatTemplate.start(folder)
        graph_folder = None
        for name, is_for_cpu in (("weight-cache", cache is not None), ("reproducible", reproducible)):
            if is_for_cpu:
                if device not in ("auto", "cpu"):
                    raise BadInputError(f"{name}: is for the CPU, not for {device}")
                device = "cpu"
        if cache is None:
            manifest.check_hashes(folder)
        else:
            manifest.check_hashes(folder, but=GRAPH_FILES)  # the cache's are read in their place
            graph_folder = packed_graph(folder, manifest, cache)
        tokenizer = read_tokenizer(folder)
        check_tokenizer(folder, manifest, tokenizer)
        runner, device = open_on(device, folder, manifest, context, options, graph_folder)
        template, own_sampling = _template(folder), default_sampling(folder)
        loaded = Loaded(manifest, runner, tokenizer, template, context, device, reproducible, own_sampling)
        if kv_rule == "auto":
            loaded.rule = fitting_rule(manifest, runner.rules, context, kv_budget_bytes)
        else:
            loaded.rule = loaded.kv_rule(kv_rule)
        log.info("%s: loaded on %s in %.2f s, context %d", folder, device, time.perf_counter() - started, context)
        return cls._of(loaded, str(bundle))

    def session(self, *, kv_rule: RunRuleName | None = None, lazy_prompt: bool | None = None) -> Session:
        """A new conversation.

        Args:
            kv_rule: where it is to be another than the one the model was loaded with.
            lazy_prompt: under `exact` and a threshold, prompts run loop 1 alone until a token goes deeper: the first
                token comes sooner, and the deeper loops' work on the prompt in a gap later or never. By default where
                the bundle has a calibrated threshold.
        """
        return self._session(kv_rule, lazy_prompt, None)

    def load_session(self, path: Path | str) -> Session:
        """The conversation that `Session.save` kept: it goes on without running its tokens again.

        Raises:
            BadInputError: the file cannot be read, or is of another bundle.
        """
        conversation = read_conversation(Path(path), self.manifest, self.context)
        return self._session(conversation.rule, None, conversation)

    def _session(
        self, kv_rule: RunRuleName | None, lazy_prompt: bool | None, conversation: Conversation | None
    ) -> Session:
        loaded = self._loaded
        lazy = self.manifest.gate.threshold is not None if lazy_prompt is None else lazy_prompt
        return Session(loaded, loaded.kv_rule(kv_rule), lazy and not loaded.reproducible, conversation)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> Stream:
        """Reply to a prompt in a conversation of its own, token by token; all is checked now, the model runs as tokens
        are asked for.

        Args:
            prompt: what a user says, messages of `{"role": ..., "content": ...}`, or token ids.
            sampling: how tokens are chosen; by default what the bundle's makers chose (`sampling`).
            exit_policy: by default the bundle's own (`policy`).
            options: fields of `Sampling` (`max_tokens=20`), and those of `ReplyOptions`.

        Raises:
            ContextFullError: the prompt does not fit the context.
            BadInputError: an empty prompt, a token id the model does not have, a wrong option.
        """
        return self.session().stream(prompt, sampling, exit_policy, **options)

    def choices(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None = None,
        exit_policy: str | ExitPolicy | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Generation]:
        """Like `generate`, `Sampling.n` replies to one prompt, whose tokens run once; the seed of the i-th is
        `seed + i`.
        """
        return self.session().choices(prompt, sampling, exit_policy, **options)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens the tokenizer adds.

        Raises:
            BadInputError: it is not a text that the tokenizer takes.
        """
        return self._loaded.encode(text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        most: int | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation in the bundle's chat template, ready for the assistant's turn. A reply to one
        that ends with the assistant's message goes on with its words.

        Args:
            messages: as `ChatTemplate.render` takes them.
            most: leave out the oldest messages, but for a system's and what follows the user's last, until there are no
                more tokens.
            tools: the functions that the model may call, as JSON schemas.
            chat_template_kwargs: further variables of the template: `enable_thinking`, `documents`.

        Raises:
            BadInputError: the bundle has no chat template, it has no place for tools, or it refuses these messages.
            ContextFullError: it is longer than the context could hold, and nothing may be left out.
        """
        return self._loaded.encode_chat(messages, most, tools=tools, chat_template_kwargs=chat_template_kwargs)

    def policy(self, exit_policy: str | ExitPolicy | None = None) -> ExitPolicy:
        """An exit policy from its text form, checked against this model; by default the bundle's own: its calibrated
        threshold where it has one, else `full`.

        Raises:
            BadInputError: it is no exit policy of this model.
        """
        return self._loaded.policy(exit_policy)

    def sampling(
        self, otherwise: Sampling | None = None, /, *, most_tokens: int | None = None, **fields: Unpack[SamplingFields]
    ) -> Sampling:
        """How the bundle's makers want tokens to be chosen (its generation_config.json), but for the fields given here:
        `model.sampling(seed=1)`. Greedy where they say nothing.

        Args:
            otherwise: has the fields that neither says.
            most_tokens: what bounds `max_tokens`, whoever says it.
            fields: as those of `Sampling`.

        Raises:
            BadInputError: a value is out of range; names the field.
        """
        return self._loaded.sampling(otherwise, most_tokens=most_tokens, **fields)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._loaded.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer (the package `tokenizers`)."""
        return self._loaded.tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        """The bundle's chat template; None where it has none."""
        return self._loaded.template

    @property
    def context(self) -> int:
        """Tokens that a conversation may hold."""
        return self._loaded.context

    @property
    def device(self) -> str:
        """What it runs on: `cpu`, `webgpu`, `cuda`."""
        return self._loaded.device

    @property
    def loops(self) -> int:
        """The loops of full depth."""
        return self._loaded.loops

    @property
    def kv_rule(self) -> str:
        """The KV rule of conversations that name none."""
        return self._loaded.rule.name

    @property
    def reproducible(self) -> bool:
        """Whether a reply depends on its prompt and options alone, to the last bit."""
        return self._loaded.reproducible


def _template(folder: Path) -> ChatTemplate | None:
    """The chat template of a bundle; a line is logged where it loses what users say."""
    template = ChatTemplate.from_folder(folder)
    loss = None if template is None else template.loss()
    if loss is not None:
        log.log(logging.INFO if loss == "texts" else logging.WARNING, "%s: %s", folder, LOSSES[loss])
    return template
