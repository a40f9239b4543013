"""What a chat template does with what it gets, seen by rendering words that no template writes by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from rrt_edge.runtime.bundle.messages import Form
from rrt_edge.runtime.errors import BadInputError

Chat = list[dict[str, Any]]
Render = Callable[[Chat, Sequence[Any] | None], str]
Loss = Literal["everything", "texts", "earlier turns"]
Fate = Literal["kept", "lost", "refused"]

ROLES = ("user", "system", "assistant", "tool")  # others, of which a client may send many, are taken for the first
PROBE = "Wozzeck"
SECOND = "Andresberg"
MARK = "Margretli"  # beside a part's text: whoever writes it writes the part as it is, not its words
CALL_ID = "abcdefghi"  # Mistral's templates take ids of nine letters and digits alone
LOSSES: dict[Loss, str] = {
    "everything": "the chat template leaves out what the user says, in every form; correct it, or remove it and use "
    "plain prompts",
    "texts": "the chat template leaves out what the user says where that is a text, so it gets text parts here; other "
    "programs may lose it: correct the template to take both",
    "earlier turns": "the chat template leaves out what the user said before the last message; correct it where "
    "conversations of several turns are meant to work",
}


class Probes:
    """A template's answers, each asked for once.

    Args:
        render: the text that the template makes of messages and tools.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._fates: dict[tuple[str, Form], Fate] = {}
        self._answers: dict[str, bool] = {}

    def keeps(self, role: str, form: Form) -> bool:
        """Whether the words of a content of this form are written, for messages of this role."""
        return self._fate(role if role in ROLES else ROLES[0], form) == "kept"

    def loss(self) -> Loss | None:
        """What users say that does not reach the model; None where all does, or where the template refuses it."""
        if self.keeps("user", "text"):
            chat = [_user(PROBE), {"role": "assistant", "content": "Yes."}, _user(SECOND)]
            return "earlier turns" if self._fate_of(chat, PROBE, SECOND) == "lost" else None
        if self.keeps("user", "part"):
            return "texts"
        return "everything" if self._fate("user", "text") == "lost" else None

    @property
    def takes_tools(self) -> bool:
        """Whether tools are written."""
        if "tools" not in self._answers:
            parameters = {"type": "object", "properties": {}, "required": []}
            function = {"name": PROBE, "description": SECOND, "parameters": parameters}
            text = self._text([_user("Hi")], [{"type": "function", "function": function}])
            self._answers["tools"] = text is not None and PROBE in text
        return self._answers["tools"]

    @property
    def takes_objects(self) -> bool:
        """Whether the arguments of a call should be an object: written as JSON once more, a text of JSON is quoted."""
        if "objects" not in self._answers:
            quoted = self._text(_calling(f'{{"{PROBE}": 1}}'))
            written = self._text(_calling({PROBE: 1}))
            loses = quoted is None or PROBE not in quoted or f'\\"{PROBE}' in quoted
            self._answers["objects"] = loses and written is not None and PROBE in written
        return self._answers["objects"]

    @property
    def written_call(self) -> str:
        """A conversation in which a function is called, as the template writes it; empty where it refuses it."""
        return self._text(_calling({PROBE: 1})) or self._text(_calling(f'{{"{PROBE}": 1}}')) or ""

    def _fate(self, role: str, form: Form) -> Fate:
        if (role, form) not in self._fates:
            content: Any = PROBE if form == "text" else [{"type": "text", "text": PROBE, "note": MARK}]
            if form == "parts":
                content.append({"type": "text", "text": SECOND, "note": MARK})
            words = (PROBE, SECOND) if form == "parts" else (PROBE,)
            self._fates[role, form] = self._fate_of(_speaking(role, content), *words)
        return self._fates[role, form]

    def _fate_of(self, chat: Chat, *words: str) -> Fate:
        text = self._text(chat)
        if text is None:
            return "refused"
        written = text.casefold()
        kept = all(word.casefold() in written for word in words) and MARK.casefold() not in written
        return "kept" if kept else "lost"

    def _text(self, chat: Chat, tools: Sequence[Any] | None = None) -> str | None:
        try:
            return self._render(chat, tools)
        except BadInputError:
            return None


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _speaking(role: str, content: Any) -> Chat:
    """A conversation in which a role says something."""
    message = {"role": role, "content": content}
    if role == "user":
        return [message]
    if role == "system":
        return [message, _user("Hi")]
    if role == "tool":
        return [*_calling({}), {**message, "tool_call_id": CALL_ID, "name": "f"}]
    return [_user("Hi"), message]


def _calling(arguments: Any) -> Chat:
    """A conversation in which the assistant calls a function."""
    call = {"id": CALL_ID, "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [_user("Hi"), {"role": "assistant", "tool_calls": [call]}]
