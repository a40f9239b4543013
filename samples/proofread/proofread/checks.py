"""What is taken of a reply: nothing where it went wrong as a whole, and no change that a proofreader must not make."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher

from proofread.comparing import Change
from proofread.prose import Prose

WORD = re.compile(r"\w+(?:['-]\w+)*")
RUN = 4  # words: a run of so many that comes more often than in the text is a loop
CHANGED, ALWAYS = 0.5, 4  # share of the words that may change; as many words always may
SHORTEST, LONGEST = 0.6, 1.5  # of the text's words
MARKUP = "*_`~[]<>#|\\\\${}^"
ENDS = ".?!,:;"
# Longer words are not exchanged for others that look unlike them: of 29,833 right corrections in the training texts,
# this forbids 127. Nor are they left out, but for one that stands there twice, or put in: of 22,896, this forbids 5.
ALIKE, REMOVED, INSERTED = 0.5, 4, 4
MOST_REMOVED, MOST_INSERTED = 4, 5  # letters of a word


def problem(text: str, reply: str, changes: list[Change]) -> str | None:
    """Why a reply is no correction of its text; None where it is one."""
    words, answered = WORD.findall(text), WORD.findall(reply)
    if not answered:
        return "the model gave an empty reply"
    if "\n" in reply:
        return "the model's reply has more than one paragraph"
    if "\ufffd" in reply and "\ufffd" not in text:
        return "the model's reply is not text"
    runs, own = _runs(answered), _runs(words)
    if any(count > 1 and count > own[run] for run, count in runs.items()):
        return "the model's reply repeats itself"
    spare = ALWAYS / 2
    if not SHORTEST * len(words) - spare <= len(answered) <= LONGEST * len(words) + spare:
        return "the model's reply differs too much from the text"
    changed = sum(
        max(len(WORD.findall(text[change.start : change.end])), len(WORD.findall(reply[change.first : change.last])))
        for change in changes
    )
    return "the model's reply differs too much from the text" if changed > max(ALWAYS, CHANGED * len(words)) else None


def _runs(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1))


def is_allowed(piece: Prose, change: Change, inserted: str) -> bool:
    """Whether a change is a proofreader's: figures, other alphabets and marks of markup stay, no word of weight
    comes, goes or becomes quite another one, and a heading, or a piece of a sentence, begins and ends as it did.
    """
    removed = piece.text[change.start : change.end]
    if _facts(removed) != _facts(inserted) or _are_unlike(removed.lower(), inserted.lower()):
        return False
    before, behind = piece.text[: change.start], piece.text[change.end :]
    if _changes_content(removed.strip().lower(), inserted, before.rstrip().lower(), behind.lstrip().lower()):
        return False
    if piece.sentence:
        return True
    if change.start == 0 and removed.lower() == inserted.lower():
        return False
    stripped = removed.rstrip(ENDS)
    return not (change.end == len(piece.text) and stripped == inserted.rstrip(ENDS) and removed != inserted)


def _are_unlike(removed: str, inserted: str) -> bool:
    if len(removed) < REMOVED or len(inserted) < INSERTED:
        return False
    return SequenceMatcher(None, removed, inserted, autojunk=False).ratio() < ALIKE


def _changes_content(removed: str, inserted: str, before: str, behind: str) -> bool:
    """Whether a word of weight is left out or put in."""
    words, answered = WORD.findall(removed), WORD.findall(inserted)
    if words and answered:
        return False
    if before.endswith(removed) or behind.startswith(removed):
        words = []
    return max(map(len, words), default=0) > MOST_REMOVED or max(map(len, answered), default=0) > MOST_INSERTED


def _facts(text: str) -> list[str]:
    return sorted(letter for letter in text if letter.isdigit() or ord(letter) > 127 or letter in MARKUP)
