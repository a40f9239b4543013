"""Correct texts with a small model on this machine.

    import proofread
    print(proofread.correct("I recieved you're letter.").text)

`correct` loads the bundle that lies beside this package once; `Proofreader` takes another.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from proofread.corrected import Corrected, Edit, Left, Segment
from proofread.proofreader import Proofreader
from proofread.replies import Stopped

__all__ = ["Corrected", "Edit", "Left", "Proofreader", "Segment", "Stopped", "correct"]


def correct(text: str, **options: Any) -> Corrected:
    """Correct a text with the bundle that lies beside this package; the options are `Proofreader.correct`'s."""
    return _shipped().correct(text, **options)


@cache
def _shipped() -> Proofreader:
    return Proofreader.load()
