"""The terminal chat: one conversation, slash commands, replies as they stream; or a pipe whose lines are answered."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from rrt_edge.cli.chat.view import MarkdownView, View, bare, footer, styled, visible
from rrt_edge.cli.terminal import depth_text, legend
from rrt_edge.runtime import BadInputError, ContextFullError, RRTEdgeError
from rrt_edge.runtime.loaded import insides

if TYPE_CHECKING:
    from rrt_edge.cli.chat.keys import Keyboard, Stop
    from rrt_edge.runtime import Model, Sampling, Session, Token
    from rrt_edge.runtime.interfaces import ContextFull


class Chat:
    """A conversation with a model.

    Its whole state is the list of messages: whatever a command does to them, the session keeps the keys and values of
    the beginning that stays the same.

    Args:
        new_session: makes an empty session of the model.
        execute: runs a slash command; raises EOFError where the chat is to end.
        keyboard: where people type and read; without one each line of standard input is answered, and nothing but
            replies and what `/help` and `/stats` say is printed.
        context_full: what to do where the conversation fills the context (`Session.stream`).
        show_depth: shade each token by the depth it left at.
        plain: do not render Markdown.
        chat_template_kwargs: further variables of the chat template.

    Raises:
        BadInputError: the exit policy or the system message does not go with the model.
    """

    def __init__(
        self,
        model: Model,
        new_session: Callable[[], Session],
        console: Console,
        sampling: Sampling,
        exit_policy: str | None,
        *,
        execute: Callable[[Chat, str], None],
        keyboard: Keyboard | None,
        show_depth: bool = False,
        plain: bool = False,
        system: str = "",
        context_full: ContextFull = "error",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.console, self.sampling = model, console, sampling
        self.show_depth, self.plain, self.context_full = show_depth, plain, context_full
        self._variables = chat_template_kwargs
        self.messages: list[dict[str, str]] = []
        self._new_session = new_session
        self.session = new_session()
        self._retries = 0  # of the last message
        self._status = 0
        self.set_policy(insides(model).exits.own_policy if exit_policy is None else exit_policy)
        if system:
            self.set_system(system)
        self.keyboard, self._execute = keyboard, execute

    def run(self) -> int:
        """Answer until the input ends; returns the exit status: that of the first error where a pipe was answered."""
        if self.keyboard:
            self._greet()
        while True:
            try:
                self.take(self._read())
            except EOFError:
                return self._status
            except KeyboardInterrupt:
                if not self.keyboard:
                    raise
                self.notice("Ctrl-D or /exit leaves")

    def take(self, text: str) -> None:
        """Answer a message or run a command; errors are shown.

        Raises:
            EOFError: the command was to leave.
        """
        try:
            if text.startswith("/"):
                self._execute(self, text)
            elif text.strip():
                self._answer([*self.messages, {"role": "user", "content": text.strip()}], 0)
        except RRTEdgeError as error:
            self._complain(error)

    def retry(self) -> None:
        """Answer the last message again."""
        self._answer(self.messages[: self._last_question() + 1], self._retries + 1)

    def undo(self) -> str:
        """Drop the last message and its reply; returns the message."""
        at = self._last_question()
        dropped = self.messages[at]["content"]
        self.messages, self._retries = self.messages[:at], 0
        return dropped

    def set_system(self, text: str) -> None:
        """Set the system message, or drop it where the text is empty."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.replace_messages([{"role": "system", "content": text}, *rest] if text else rest)

    def replace_messages(self, messages: list[dict[str, str]]) -> None:
        """Go on with other messages, where the chat template takes them."""
        if messages:
            asks = messages[-1]["role"] == "user"
            chat = messages if asks else [*messages, {"role": "user", "content": "?"}]
            self.model.encode_chat(chat, chat_template_kwargs=self._variables)
        self.messages, self._retries = messages, 0

    def set_policy(self, text: str) -> None:
        """Use another exit policy from the next reply on."""
        self.session.stream([0], self.sampling, text)  # checks what goes with what; nothing runs until tokens are asked
        self.exit_policy = text

    def notice(self, text: str) -> None:
        """Tell people what was done; a program that reads the output asked for replies alone."""
        if self.keyboard:
            self.console.print(visible(text), style="dim", markup=False)

    def _greet(self) -> None:
        loops = f"{self.model.loops} loop{'' if self.model.loops == 1 else 's'}"
        family, context = self.model.manifest.architecture.family, self.model.context
        self.console.print(f"{family}, {loops}, context of {context} tokens, exit policy {self.exit_policy}")
        self.notice("Enter sends, Alt-Enter breaks the line, /help lists commands, Ctrl-D leaves")
        if self.show_depth:
            self.console.print(legend(self.model.loops, self.console))

    def _read(self) -> str:
        if self.keyboard:
            return self.keyboard.read()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def _answer(self, messages: list[dict[str, str]], retries: int) -> None:
        """Stream the reply to the last of some messages, and make both the conversation."""
        sampling = self.sampling.choice(retries)
        try:
            stream = self.session.stream(
                messages, sampling, self.exit_policy,
                context_full=self.context_full, chat_template_kwargs=self._variables,
            )  # fmt: skip
        except ContextFullError as error:
            raise self._full(error) from error
        tokens: list[Token] = []
        how = "stopped"
        try:
            with self._stoppable() as stop, self._view() as view:
                for token in stream:
                    last = stop is not None and stop.asked()
                    tokens.append(token)
                    view.add(token)
                    if last:
                        break
                else:
                    how = self.session.finish_reason
                stream.close()
        except KeyboardInterrupt:
            if not self.keyboard:
                raise
            self.session = self._new_session()  # this one may have been cut short anywhere
        if not tokens:
            self.notice("stopped before the reply began; Up brings the message back")
            return
        reply = {"role": "assistant", "content": stream.text}
        if stream.thought:
            reply["reasoning_content"] = stream.thought  # templates may have a use for it
        self.messages, self._retries = [*messages, reply], retries
        self._foot(how, len(tokens))

    def _foot(self, how: str, count: int) -> None:
        """The lines below a reply, for people."""
        if how == "stopped":
            self.notice("stopped")
        elif how == "length" and count == self.sampling.most_tokens(self.session.stats.prompt_tokens):
            self.notice(f"cut off at {count} tokens (--max-tokens)")
        elif how == "length":
            self.notice("cut off: the context is full; /undo drops the last exchange, /reset starts anew")
        with contextlib.suppress(BadInputError):  # broken off: there are no statistics
            self.notice(footer(self.session.stats, self.model.loops, self.model.context))
        self.notice("")

    def _full(self, error: ContextFullError) -> RRTEdgeError:
        what = str(error).partition(";")[0]
        wayout = "/undo drops the last exchange, /reset starts anew" if self.messages else "shorten it"
        return ContextFullError(f"{what}; {wayout}")

    def _last_question(self) -> int:
        """Return the index of the user's last message."""
        questions = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not questions:
            raise BadInputError("there is no message yet")
        return questions[-1]

    def _view(self) -> View:
        console = self.console
        if self.show_depth:
            return styled(
                console, lambda token: depth_text(dataclasses.replace(token, text=visible(token.text)), console)
            )
        if not self.keyboard:
            return bare(console)
        if self.plain or console.is_dumb_terminal:
            return styled(console, lambda token: Text(visible(token.text)))
        return MarkdownView(console)

    def _stoppable(self) -> AbstractContextManager[Stop | None]:
        if not self.keyboard:
            return contextlib.nullcontext()
        from rrt_edge.cli.chat.keys import stoppable

        return stoppable()

    def _complain(self, error: RRTEdgeError) -> None:
        if self.keyboard:
            self.console.print(f"error: {visible(str(error))}", style="red", markup=False)
            return
        click.echo(f"error: {error}", err=True)
        self._status = self._status or (2 if isinstance(error, BadInputError) else 1)
