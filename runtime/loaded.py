"""`Loaded`: a bundle in memory, and what it makes of texts, conversations and options before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Unpack, get_args

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.chat_template import ChatTemplate, checked_variables
from rrt_edge.runtime.bundle.kv_rule_names import RunRuleName
from rrt_edge.runtime.bundle.kv_rules import KV_RULES, KVRule
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.messages import (
    ChatPrompt,
    Message,
    as_messages,
    cut,
    ends_with_assistant,
    is_conversation,
    shortened,
)
from rrt_edge.runtime.decoding.constraint import Allows, Grammars
from rrt_edge.runtime.decoding.detokenizer import TextStream
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy, Exits
from rrt_edge.runtime.decoding.pipeline import Pipeline
from rrt_edge.runtime.decoding.reply import Reply
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.sequence import SequenceState
from rrt_edge.runtime.decoding.thought import (
    CLOSE,
    CLOSING,
    OPEN,
    ReplyText,
    Thinking,
    ThoughtRule,
    has_markers,
    opens_thought,
)
from rrt_edge.runtime.decoding.token_bytes import TokenBytes
from rrt_edge.runtime.decoding.tool_calls import Style, style_in
from rrt_edge.runtime.errors import BadInputError, ContextFullError, DeviceError, about, from_outside
from rrt_edge.runtime.interfaces import ContextFull, Prompt, ReplyOptions, SamplingFields
from rrt_edge.runtime.running.kv_choice import why_unfit
from rrt_edge.runtime.running.runner import AnyRunner
from rrt_edge.runtime.system.closing import still_open
from rrt_edge.runtime.system.names import check_names
from rrt_edge.runtime.system.onnxruntime import first_line
from rrt_edge.runtime.system.options import plain_number, shown
from rrt_edge.runtime.system.whole_text import check_text

SAMPLING_FIELDS = frozenset(field.name for field in fields(Sampling))
OWN_OPTIONS = ReplyOptions.__annotations__.keys() - SamplingFields.__annotations__.keys()
NO_TOOLS = "tools: not supported by this model, whose chat template has no place for them"


@dataclass(frozen=True)
class Prepared:
    """A request whose prompt and options are checked; `shifts`: the reply may be longer than the context."""

    ids: list[int]
    sampling: Sampling
    policy: ExitPolicy
    shifts: bool


class Loaded:
    """A loaded bundle, shared by any number of conversations and threads: the inside of a `Model`."""

    def __init__(
        self,
        manifest: Manifest,
        runner: AnyRunner,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        context: int,
        device: str = "cpu",
        reproducible: bool = False,
        own_sampling: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.manifest = manifest
        self.rule = manifest.rule  # of conversations that name none
        self.tokenizer = tokenizer
        self.template = template
        self.context = context  # tokens a conversation may hold
        self.device = device  # what it runs on
        self.reproducible = reproducible  # a reply depends on its prompt and options alone, to the last bit
        self.own_sampling = own_sampling  # the fields of `Sampling` that the bundle's makers chose
        self.drafting = Drafting()
        self._runner: AnyRunner | None = runner

    def close(self) -> None:
        """Free the weights, and what sessions hold on a device; sessions of this model cannot go on."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    @property
    def runner(self) -> AnyRunner:
        return still_open(self._runner)

    @property
    def is_open(self) -> bool:
        return self._runner is not None

    @property
    def loops(self) -> int:
        return self.manifest.architecture.loops

    def encode(self, text: str, special: bool = True) -> list[int]:
        """As `Model.encode`; `special`: with the special tokens that the tokenizer adds."""
        return self._ids(text, add_special_tokens=special)

    def prepare(
        self,
        prompt: Prompt,
        sampling: Sampling | SamplingFields | None,
        exit_policy: str | ExitPolicy | None,
        options: ReplyOptions,
    ) -> Prepared:
        """Check what `TextModel.stream` takes; errors as there."""
        check_names("a reply", options, {*SAMPLING_FIELDS, *OWN_OPTIONS, "sampling", "exit_policy"})
        own: dict[str, Any] = {name: value for name, value in options.items() if name in OWN_OPTIONS}
        chosen = self.chosen(sampling, {name: value for name, value in options.items() if name not in OWN_OPTIONS})
        policy, context_full = self.policy(exit_policy), own.pop("context_full", "error")
        most = self.prompt_room(context_full, chosen)
        ids = cut(self.ids_of(prompt, most, **own), most)
        return Prepared(self.checked_ids(ids), chosen, policy, context_full == "shift")

    def prompt_room(self, context_full: str, sampling: Sampling) -> int | None:
        """Tokens to which a longer prompt is shortened, so that a reply has room; None where it is not shortened."""
        if context_full not in get_args(ContextFull):
            raise BadInputError(f"context-full {context_full!r}: choose from {', '.join(get_args(ContextFull))}")
        most_tokens = min(sampling.max_tokens, self.context // 2)
        return None if context_full == "error" else max(1, self.context - most_tokens)

    def ids_of(
        self,
        prompt: Prompt,
        most: int | None = None,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a prompt, in a list of its own; arguments and errors as `encode_chat` and `ReplyOptions`."""
        is_chat = is_conversation(prompt)
        if is_chat and raw:
            raise BadInputError("raw: is for texts, and messages go through the chat template; leave it out")
        if isinstance(prompt, str) and not raw and self.template is not None:
            prompt, is_chat = [{"role": "user", "content": prompt}], True
        if is_chat:
            return self.encode_chat(prompt, most, tools=tools, chat_template_kwargs=chat_template_kwargs)  # type: ignore[arg-type]
        for name, value in (("tools", tools), ("chat_template_kwargs", chat_template_kwargs)):
            if value:
                raise BadInputError(f"{name}: goes with a chat template, which this prompt is not put into")
        if isinstance(prompt, str):
            if most is None:
                self.check_length(prompt)
            return self.encode(prompt)
        return ChatPrompt(prompt, prompt.continues, prompt.left_out) if isinstance(prompt, ChatPrompt) else list(prompt)  # type: ignore[arg-type]

    def chosen(self, sampling: Sampling | SamplingFields | None, fields: Mapping[str, Any]) -> Sampling:
        """How tokens are chosen, of what `TextModel.stream` takes: a `Sampling` as it is, but for the fields."""
        if isinstance(sampling, Sampling):
            return replace(sampling, **fields) if fields else sampling
        if isinstance(sampling, Mapping | None):
            return self.sampling(**{**(sampling or {}), **fields})
        remedy = "; an exit policy is given as exit_policy=..." if isinstance(sampling, str | ExitPolicy) else ""
        raise BadInputError(f"sampling {shown(sampling)}: must be a Sampling or a mapping of its fields{remedy}")

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """`encode_batch_fast` lets other threads run meanwhile, which `encode` does not."""
        check_text(text)
        try:
            ids: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except BaseException as error:  # plain Exception, and a panic in Rust is none
            if from_outside(error):
                raise
            raise BadInputError(f"the text cannot be encoded ({first_line(error)})") from error
        return ids

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token's name, in which characters may stand for bytes."""
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    def check_length(self, text: str) -> None:
        """Refuse a text whose length alone says that the context does not hold it, before any work is done on it.

        Raises:
            ContextFullError: it has more characters than the context's tokens could have.
        """
        most = self.context * self.longest_token if len(text) > self.context else len(text)
        if len(text) > most:
            raise ContextFullError(
                f"the prompt has {len(text)} characters and the context of {self.context} tokens holds at most {most}; "
                "shorten the prompt or start a new conversation",
                "prompt",
            )

    def encode_chat(
        self,
        messages: Sequence[Message],
        most: int | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """As `Model.encode_chat`."""
        if (template := self.template) is None:
            raise BadInputError("this bundle has no chat template; use plain prompts (--raw)")
        if tools and not template.takes_tools:
            raise BadInputError(NO_TOOLS, "tools")
        messages, variables = as_messages(messages), checked_variables(chat_template_kwargs)

        def prompt(kept: Sequence[Message]) -> ChatPrompt:
            text = template.prompt(kept, tools=tools, **variables)
            if most is None:
                self.check_length(text)
            ids = self._ids(text, add_special_tokens=False)
            return ChatPrompt(ids, ends_with_assistant(kept), len(messages) - len(kept))

        whole = prompt(messages)
        if most is None or len(whole) <= most:
            return whole
        return prompt(shortened(messages, lambda kept: len(prompt(kept)) <= most))

    @property
    def exits(self) -> Exits:
        """The loops and thresholds that exit policies of this model refer to."""
        gate, architecture = self.manifest.gate, self.manifest.architecture
        has_gate = architecture.looping.gate != "none" or self.loops == 1
        return Exits(self.loops, gate.threshold, gate.points, architecture.exits, has_gate)

    def policy(self, exit_policy: str | ExitPolicy | None = None) -> ExitPolicy:
        """As `Model.policy`."""
        if isinstance(exit_policy, ExitPolicy):
            self.exits.check(exit_policy)
            return exit_policy
        if not isinstance(exit_policy, str | None):
            raise BadInputError(f"exit policy {shown(exit_policy)}: must be a text or an ExitPolicy")
        return ExitPolicy.parse(self.exits.own_policy if exit_policy is None else exit_policy, self.exits)

    def sampling(
        self, otherwise: Sampling | None = None, /, *, most_tokens: int | None = None, **fields: Unpack[SamplingFields]
    ) -> Sampling:
        """As `Model.sampling`."""
        check_names("Sampling", fields, SAMPLING_FIELDS)
        own = dict(self.own_sampling)
        least = own.pop("min_tokens", 0)
        if "max_tokens" in fields:
            own.pop("max_length", None)  # as in transformers, where tokens of the reply count before those of both
        sampling = replace(otherwise or Sampling(), **{**own, **fields})
        if most_tokens is not None and most_tokens < sampling.max_tokens:
            sampling = replace(sampling, max_tokens=most_tokens)
        if least and "min_tokens" not in fields:
            sampling = replace(sampling, min_tokens=min(least, sampling.max_tokens))
        return sampling

    def pipeline(
        self, state: SequenceState[Any], policy: ExitPolicy, leaves: bool = False, watch: int | None = None
    ) -> Pipeline | None:
        """What runs tokens of a sequence ahead of time; None where nothing can: rows do not wait under the KV rule, or
        a trace says where tokens leave.

        Args:
            leaves: whether tokens may leave early in it.
            watch: the depth whose tokens are told, if any.
        """
        manifest, looping, slots = self.manifest, self.manifest.architecture.looping, self.runner.slots
        last = policy.depth or self.loops
        exits = [depth for depth in manifest.architecture.exits if depth < last]
        depths = [depth for depth in exits if looping.draft_depth <= depth and slots > 1]
        if self.reproducible or policy.trace or not state.rule.exact:
            return None
        if not depths and (policy.may_leave or not self.drafting.reads_text):
            return None
        if policy.may_leave and (not leaves or slots < last):
            return None
        gated = manifest.gate.trained and looping.gate == "mlp"  # a hazard says that a state is good enough, no more
        early = exits if policy.may_leave else []
        return Pipeline(state, self.drafting, depths, last, slots, manifest.eos_token_ids, gated, early, watch)

    def kv_rule(self, name: RunRuleName | None) -> KVRule:
        """The KV rule of a name, by default the one that the bundle was loaded with.

        Raises:
            BadInputError: there is no such rule, or it does not go with this bundle.
            DeviceError: the device does not follow it.
        """
        if name is not None and name not in KV_RULES:
            raise BadInputError(f"kv-rule {name!r}: choose from {', '.join(KV_RULES)}")
        rule = self.rule if name is None else KV_RULES[name]
        problem = None if name is None else why_unfit(rule, self.manifest.architecture)
        if problem is not None:
            raise BadInputError(f"kv-rule {rule}: {problem}")
        if name is not None and rule.projects and self.device == "cpu" and rule not in self.runner.rules:
            raise BadInputError(
                f"kv-rule {rule}: this bundle's graph has no room for it; export a model trained for it"
            )
        if rule not in self.runner.rules:
            raise DeviceError(f"kv-rule {rule}: runs on the CPU only; use device cpu")
        return rule

    def checked_ids(self, ids: list[int]) -> list[int]:
        """The token ids of a prompt, which the context must hold with room for a reply.

        Raises:
            ContextFullError, BadInputError: as `stream`.
        """
        vocabulary = self.manifest.architecture.vocabulary
        if not ids:
            raise BadInputError("the prompt is empty; give at least one token", "prompt")
        unknown = [token for token in ids if not (_is_whole(token) and 0 <= token < vocabulary)]
        if unknown:
            message = f"token id {shown(unknown[0])} is not among the model's {vocabulary} tokens"
            raise BadInputError(message, "prompt")
        if len(ids) >= self.context:
            message = f"the prompt has {len(ids)} tokens and the context holds {self.context}, the reply included"
            raise ContextFullError(f"{message}; shorten the prompt or start a new conversation", "prompt")
        return ids

    def reply(
        self, ids: Sequence[int], sampling: Sampling, policy: ExitPolicy, rule: KVRule, shifts: bool = False
    ) -> Reply:
        """A reply to a checked prompt, about to begin; `shifts`: it may be longer than the context.

        Raises:
            BadInputError: an option names a token that the model does not have, or a grammar cannot be followed.
        """
        vocabulary = self.manifest.architecture.vocabulary
        sampling.check_tokens(vocabulary)
        constraint: Allows | None = None
        if sampling.grammar is not None:
            with about("grammar"):
                constraint = self._grammars.constraint(sampling.grammar)
            constraint.check_room(min(sampling.most_tokens(len(ids)), self.context - len(ids)))
        ends, budget = {*self.manifest.eos_token_ids, *sampling.stop_ids}, sampling.think_tokens
        continues = isinstance(ids, ChatPrompt) and ids.continues
        stream, thinking = TextStream(self.tokenizer, sampling.stop, ids if continues else ()), self.thinking
        is_open = thinking is not None and opens_thought(self.tokenizer, ids)
        if isinstance(ids, ChatPrompt) and thinking is not None and (is_open or not continues):
            if budget is not None:
                thinking.check_closing(vocabulary)
            text = ReplyText(stream, thinking, is_open)
            if budget is not None or constraint is not None:
                constraint = ThoughtRule(text, thinking, budget, constraint, vocabulary, ends)
        else:
            text = ReplyText(stream)
        room = self.context - len(ids)
        watch = self.exits.readable[0] if sampling.first_loop else None
        return Reply(text, ids, sampling, policy, room, ends, constraint, shifts, self.device, rule.name, watch)

    @cached_property
    def thinking(self) -> Thinking | None:
        """How the model thinks before it answers in a chat; None where it does not."""
        template = self.template
        if has_markers(self.tokenizer) or (template is not None and template.mentions(OPEN, CLOSE)):
            return Thinking.of(self.tokenizer, self._ids(CLOSING, add_special_tokens=False))
        return None

    @cached_property
    def call_style(self) -> Style | None:
        """How the model writes calls of functions; None where it is not known."""
        return None if self.template is None else style_in(self.template.written_call)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of each token."""
        return TokenBytes(self.tokenizer)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.manifest.architecture.vocabulary, self.manifest.eos_token_ids)


class Holder:
    """A public object around a loaded bundle."""

    _loaded: Loaded


def insides(model: Holder) -> Loaded:
    """What this package, and no program, has of a `Model`.

    Raises:
        BadInputError: it is none.
    """
    if not isinstance(model, Holder):
        raise BadInputError(f"model {shown(model)}: must be a Model; Model.load makes one of a bundle")
    return model._loaded


def _is_whole(token: object) -> bool:
    return type(token) is int or plain_number(token, int) is not None
