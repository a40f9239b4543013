"""A plug-in for the `llm` command line: installed bundles as models `rrt-edge/NAME` (extra `[llm]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import TextPart
from pydantic import Field, create_model

from rrt_edge.runtime.decoding.exit_policy import in_words
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.library.store import folder_of, installed_names
from rrt_edge.runtime.system.options import options_in, read_fields

if TYPE_CHECKING:
    from rrt_edge.runtime import Model, Stats

WITHOUT = {"n", "logprobs", "first_loop", "logit_bias"}  # llm shows one text, and has no option that is a mapping
OPTIONS = {name: understood for name, understood in options_in(Sampling).items() if name not in WITHOUT}
OTHERWISE = Sampling(max_tokens=1024)  # where neither the options nor the bundle say how long a reply may be


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[[llm.Model], None]) -> None:
    for name in installed_names():
        register(LlmBundle(name))


def _fields() -> dict[str, Any]:
    """The fields of `LlmBundle.Options`: a type and pydantic's description of each."""
    policy_help = f"{in_words()}; by default the bundle's calibrated threshold, else full"
    fields: dict[str, Any] = {"exit_policy": (str | None, Field(default=None, description=policy_help))}
    for name, understood in OPTIONS.items():
        kind: Any = str if understood.several else understood.kind
        # llm takes an option once, so the part of the help that says "may be given several times" is left out.
        help_text = understood.about.help.partition(";")[0] if understood.several else understood.about.help
        fields[name] = (kind | None, Field(default=None, description=help_text))
    return fields


class LlmBundle(llm.Model):  # type: ignore[misc]
    """One installed bundle; it is loaded at the first prompt and stays loaded."""

    can_stream = True
    supports_schema = True

    Options = create_model("Options", __base__=llm.Options, **_fields())

    def __init__(self, name: str) -> None:
        self.model_id = f"rrt-edge/{name}"
        self._name = name
        self._loaded: Model | None = None

    def __str__(self) -> str:
        return self.model_id

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """The reply to a prompt, with those before it in the conversation."""
        try:
            model = self._model()
            tokens = self._stream(model, prompt, _messages(prompt))
            for token in tokens:
                yield token.text
            stats = tokens.generation.stats
        except RRTEdgeError as error:
            raise llm.ModelError(str(error)) from error
        response.set_usage(input=stats.prompt_tokens, output=stats.generated_tokens)
        response.response_json = _told(stats)

    def _model(self) -> Model:
        from rrt_edge.runtime import Model

        if self._loaded is None:
            self._loaded = Model.load(folder_of(self._name))
        return self._loaded

    def _stream(self, model: Model, prompt: llm.Prompt, messages: list[dict[str, str]]) -> Any:
        from rrt_edge.runtime import Grammar

        options = prompt.options
        values = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
        grammar = None if prompt.schema is None else Grammar.json_schema(prompt.schema)
        sampling = model.sampling(OTHERWISE, **read_fields(Sampling, values), grammar=grammar)
        if model.template is None:
            return model.stream("".join(message["content"] for message in messages), sampling, options.exit_policy)
        return model.chat(messages, sampling, options.exit_policy, context_full="truncate-left")


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """The conversation up to and with a prompt, its text alone."""
    messages = []
    for message in prompt.messages:
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        messages.append({"role": message.role, "content": text})
    return messages


def _told(stats: Stats) -> dict[str, Any]:
    """Return what `llm logs` keeps of a reply."""
    names = ("mean_depth", "block_rows_per_token", "decode_tokens_per_second", "time_to_first_token_s")
    return {name: getattr(stats, name) for name in names}
