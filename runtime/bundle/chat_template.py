"""The bundle's chat template: a conversation as the text the model was trained on."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.messages import (
    Message,
    MessageError,
    check_objects,
    checked,
    ends_with_assistant,
    fitted,
    text_of,
    with_names_of_reasoning,
)
from rrt_edge.runtime.bundle.template_files import FILE, read_sources, special_tokens
from rrt_edge.runtime.bundle.template_probes import Loss, Probes
from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.system.children import Children, Limits

LONGEST_SOURCE = 1 << 18  # characters of a template
LIMITS = Limits(seconds=2, memory_bytes=512 << 20)  # for a conversation to be rendered
RENDERERS = Children("rrt_edge.runtime.bundle.rendering", None, LIMITS, most=2)  # of all templates
CONTINUE = "Gryzzlandon "  # behind what the assistant said; no template writes it by itself
CANNOT_CONTINUE = "the assistant's last message cannot be continued, for the chat template does not write it as it is"
NOT_VARIABLES = ("messages", "tools", "add_generation_prompt")  # which have arguments of their own
atexit.register(RENDERERS.close)


def checked_variables(variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Further variables of a template.

    Raises:
        BadInputError: one is what has an argument of its own.
    """
    variables = variables or {}
    for name in NOT_VARIABLES:
        if name in variables:
            raise BadInputError(f"chat_template_kwargs: {name} must not be among them", "chat_template_kwargs")
    return variables


class ChatTemplate:
    """A Jinja chat template that renders as transformers' `apply_chat_template` does.

    It runs in a sandbox, in a child process whose time and memory are bounded: a template is a program of whoever made
    the bundle.

    Args:
        source: the template.
        special_tokens: `bos_token`, `eos_token` and so on, by name.
        tool_use: the template of conversations with tools, where that is another.

    Raises:
        BadInputError: a template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], tool_use: str | None = None) -> None:
        self._special_tokens = dict(special_tokens)
        self._default = self._compiled(source)
        self._tool_use = self._default if tool_use is None else self._compiled(tool_use)

    @property
    def source(self) -> str:
        """The template, in Jinja."""
        return self._default.source

    def _compiled(self, source: str) -> _Template:
        if len(source) > LONGEST_SOURCE:
            raise BadInputError(f"the chat template is not valid: it has more than {LONGEST_SOURCE:,} characters")
        RENDERERS.ask({"source": source}, "the chat template is not valid: compiling it")
        return _Template(source, self._special_tokens)

    @staticmethod
    def start(folder: Path) -> None:
        """Start what renders the template of a bundle that is about to be loaded: it takes a moment to begin."""
        if (folder / FILE).is_file():
            RENDERERS.start()

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template of a bundle: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        Returns:
            None where the folder has no template, or several and none of them named "default".

        Raises:
            BundleError: a file cannot be read, or its template is not valid; names the file.
        """
        sources = read_sources(folder)
        if sources is None:
            return None
        try:
            return cls(sources.default, special_tokens(folder), sources.tool_use)
        except BadInputError as error:
            raise BundleError(f"{sources.path}: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        /,
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, ready for the assistant's turn.

        The template sees messages with all their fields. A content that is None is absent, or an empty text where the
        template refuses it so; text parts are passed to templates that work with them and joined for others, and a text
        is passed as a part to those that lose it otherwise.

        Args:
            messages: each with a role and a content: a text, a list of text parts, or None where the assistant calls
                tools; and whatever else the template reads (`tool_calls`, `reasoning_content`).
            add_generation_prompt: end with the beginning of the assistant's turn.
            tools: the functions that the model may call, as JSON schemas.
            variables: further variables of the template (`documents`, `enable_thinking`), as JSON has them; they come
                before special tokens of the same name.

        Raises:
            BadInputError: a message is wrong, or the template refuses the conversation, or takes too much time or
                memory.
        """
        check_objects("tools", tools)
        check_objects("documents", variables.get("documents"))
        chat = self.as_seen(messages, tools)
        return self._of(tools).render(chat, tools, add_generation_prompt, variables)

    def prompt(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, ready for the assistant's turn; where the last message is the assistant's, it is
        open at its end, for its words to go on, as with transformers' `continue_final_message`.

        Raises:
            BadInputError: as `render`, or the last message calls tools, whose answers are missing.
        """
        if not ends_with_assistant(messages):
            return self.render(messages, tools=tools, **variables)
        last, index = checked(messages)[-1], len(messages) - 1
        if last.get("tool_calls"):
            raise MessageError(index, ".tool_calls", "the last message calls tools; the tools' answers must follow")
        words = text_of(last)
        marked = {**last, "content": words + CONTINUE}
        text = self.render([*messages[:-1], marked], add_generation_prompt=False, tools=tools, **variables)
        said, mark, rest = text.rpartition(CONTINUE.strip())
        if not mark or not said.rstrip().endswith(words.strip()):
            raise MessageError(index, ".content", CANNOT_CONTINUE)
        return said if rest.startswith(" ") else said.rstrip()  # what trims texts would have trimmed these words

    def as_seen(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """The messages as the template gets them.

        Raises:
            MessageError: a message is wrong.
        """
        keeps = self._of(tools).probes.keeps
        return [fitted(message, keeps) for message in checked(messages)]

    def mentions(self, *texts: str) -> bool:
        """Whether the template's source has all of some texts."""
        return all(text in self._default.source for text in texts)

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes tools."""
        return self._tool_use.probes.takes_tools

    @property
    def written_call(self) -> str:
        """A conversation in which a function is called, as the template of those with tools writes it."""
        return self._tool_use.probes.written_call

    def takes_objects(self, tools: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether the template wants the arguments of a call as an object, not as a text of JSON."""
        return self._of(tools).probes.takes_objects

    def loss(self) -> Loss | None:
        """What users say that does not reach the model, if anything."""
        return self._default.probes.loss()

    def _of(self, tools: Any) -> _Template:
        return self._default if tools is None else self._tool_use


class _Template:
    """One template, compiled."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, special_tokens
        self.probes = Probes(lambda chat, tools: self.render(chat, tools, False, {}))

    def render(
        self,
        chat: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        messages = [with_names_of_reasoning(message) for message in chat]
        values = {
            "documents": None,  # templates ask whether these two are none, which an undefined variable is not
            **self._special_tokens,
            **variables,
            "tools": None if tools is None else list(tools),
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        question: dict[str, Any] = {"source": self.source, "values": values}
        if not all("content" in message for message in messages):
            whole = [{**message, "content": message.get("content", "")} for message in messages]
            question["otherwise"] = {"messages": whole}
        text: str = RENDERERS.ask(question, "the chat template refuses this conversation: rendering it")
        return text
