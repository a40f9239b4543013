"""The messages of a conversation: checked, and in the form that a chat template takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import shown
from rrt_edge.runtime.system.whole_text import check_text

Message = Mapping[str, Any]  # its role, its content (a text, text parts or none), and further fields
Form = Literal["text", "part", "parts"]  # of a content: a text, one text part, or several
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read the first
NEED_CONTENT = ("user", "system")


class MessageError(BadInputError):
    """A message is wrong.

    Attributes:
        index: which one, counted from 0.
        field: what of it, as a program writes it: `.content[0]`.
        complaint: what is wrong with it.
    """

    def __init__(self, index: int, field: str, complaint: str) -> None:
        super().__init__(f"message {index + 1}: {complaint}", f"messages[{index}]{field}")
        self.index, self.field, self.complaint = index, field, complaint


class ChatPrompt(list[int]):
    """Token ids of a conversation in the chat template: in replies to these alone a thought is told from the answer.

    Attributes:
        continues: the assistant has begun to speak, and the reply goes on.
        left_out: messages, the oldest, for which the context had no room.
    """

    def __init__(self, ids: Iterable[int] = (), continues: bool = False, left_out: int = 0) -> None:
        super().__init__(ids)
        self.continues, self.left_out = continues, left_out


def cut(ids: list[int], most: int | None) -> list[int]:
    """The token ids of a prompt, of which the oldest are dropped where there are more than there may be."""
    if most is not None:
        del ids[:-most]
    return ids


def as_messages(messages: object) -> list[Message]:
    """Messages in a list of their own; each is `checked` when it is rendered.

    Raises:
        BadInputError: they are no list, but a text, say; says what is for that.
    """
    if isinstance(messages, str):
        raise BadInputError(
            f"messages {shown(messages)}: must be a list of messages, "
            f'like [{{"role": "user", "content": {shown(messages)}}}]; generate and stream take a text as it is'
        )
    if isinstance(messages, Mapping):
        raise BadInputError(f"messages: must be a list of messages, not one alone; give [{shown(messages)}]")
    if isinstance(messages, bytes) or not isinstance(messages, Iterable):
        raise BadInputError(f'messages {shown(messages)}: must be a list of {{"role": ..., "content": ...}}')
    return list(messages)


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is messages, not a text or token ids.

    Raises:
        BadInputError: it is none of the three; says what it should be.
    """
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, bytes):
        raise BadInputError(f"prompt {shown(prompt)}: must be a text, not bytes; decode it")
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence | Collection):
        one = f"; one message goes into a list, [{shown(prompt)}]" if isinstance(prompt, Mapping) else ""
        raise BadInputError(f"prompt {shown(prompt)}: must be a text, messages or token ids{one}")
    first = next(iter(prompt), None)
    if isinstance(first, str):
        remedy = "give one at a time, or submit each to an Engine"
        raise BadInputError(f"prompt {shown(prompt)}: is a list of texts; {remedy}")
    return isinstance(first, Mapping)


def shortened(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """Messages that do not fit, but for as many of the oldest turns as have to go; the last one stays, and what a
    system says first. A turn is what is said from one message of the user to the next."""
    roles = [message["role"] for message in messages]
    first = next((at for at, role in enumerate(roles) if role != "system"), len(roles))
    begins = [at for at in range(first + 1, len(roles)) if roles[at] == "user"]  # turns, but for the oldest
    if not begins:
        return messages
    fewer = bisect_left(begins[:-1], True, key=lambda begin: fits(messages[:first] + messages[begin:]))
    return messages[:first] + messages[begins[fewer] :]


def checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of messages, with all their fields but those that are None, which templates take for text.

    Raises:
        MessageError: one is no message, or has parts that are no text.
    """
    return [_checked(index, message) for index, message in enumerate(messages)]


def _checked(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise MessageError(index, "", f"must be a mapping of role and content, not {shown(message)}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise MessageError(index, ".role", "role is missing or not a text")
    if content is None and role in NEED_CONTENT:
        raise MessageError(index, ".content", "content is missing or not a text")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        for number, part in enumerate(content):
            _check_part(index, number, part)
    elif not isinstance(content, str | None):
        raise MessageError(index, ".content", "content must be a text, or a list of text parts")
    check_text(text_of(message))
    return {name: value for name, value in message.items() if value is not None}


def _check_part(index: int, number: int, part: Any) -> None:
    field, name = f".content[{number}]", f"content: part {number + 1}"
    if not isinstance(part, Mapping):
        complaint = f'{name} must be an object {{"type": "text", "text": ...}}, not {shown(part)}'
        raise MessageError(index, field, complaint)
    if part.get("type") != "text":
        complaint = f"{name} is of the type {shown(part.get('type'))}; only text parts are supported"
        raise MessageError(index, field, complaint)
    if not isinstance(part.get("text"), str):
        raise MessageError(index, f"{field}.text", f"{name}: text is missing or not a text")


def ends_with_assistant(messages: Sequence[Message]) -> bool:
    """Whether the last message is the assistant's, whose words are to go on."""
    last = messages[-1] if messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def text_of(message: Message) -> str:
    """The words of a checked message."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def fitted(message: dict[str, Any], keeps: Callable[[str, Form], bool]) -> dict[str, Any]:
    """A checked message whose content has a form in which the template keeps its words.

    The form that it has is changed for another only where the template loses words in it.

    Args:
        keeps: whether the template writes the words of a content of a form, for a role.
    """
    role, content = message["role"], message.get("content")
    if content is None or (not isinstance(content, str) and keeps(role, "parts")):
        return message
    text = text_of(message)
    if not keeps(role, "text") and keeps(role, "part"):
        return {**message, "content": [{"type": "text", "text": text}]}
    return {**message, "content": text}


def with_names_of_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning, however it is called, has the names that templates read, as transformers gives it."""
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, REASONING[0]: reasoning}


def check_objects(name: str, value: Any) -> None:
    """
    Raises:
        BadInputError: `tools`, or the like, is not a list of objects.
    """
    if value is None:
        return
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadInputError(f"{name}: must be a list of objects")
    wrong = [number for number, entry in enumerate(value) if not isinstance(entry, Mapping)]
    if wrong:
        raise BadInputError(f"{name}[{wrong[0]}]: must be an object, not {shown(value[wrong[0]])}")
