"""`Proofreader`: a bundle that corrects texts, piece by piece, several at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from types import TracebackType

from proofread import markdown, plain_text
from proofread.corrected import Corrected, Edit, Left, Run
from proofread.corrections import corrections, keep_structure, without_overlaps
from proofread.pieces import cut, reason_to_skip
from proofread.prose import Prose
from proofread.replies import Reply, generate
from rrt_edge.runtime import BadInputError, Model

BUNDLE = Path(__file__).parents[1] / "bundle"
KEPT = 4096  # replies that are remembered
SURE = 0.6  # of changes: the best of development texts; docs/proofread.md has the scores of others


class Proofreader:
    """Corrects texts with a bundle that was trained to; use it in a `with` block or call `close`.

    Replies are remembered: of a text that was corrected before, only the pieces that changed are read again. It may be
    used by several threads.
    """

    def __init__(self, model: Model, point: str | None = None, sure: float = SURE) -> None:
        """
        Args:
            point: one of the bundle's operating points (`fast`, `balanced`, `faithful`), or another exit policy.
            sure: the least probability that the model must give a change, from 0 (every change is made) to 1.

        Raises:
            BadInputError: the bundle has no such point, or `sure` is no probability.
        """
        if not 0 <= sure <= 1:
            raise BadInputError(f"sure: must be a probability from 0 to 1, not {sure}")
        self.model, self.policy, self.sure = model, model.policy(point), sure
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def load(
        cls, bundle: Path | str | None = None, point: str | None = None, threads: int | None = None, sure: float = SURE
    ) -> Proofreader:
        """Load a bundle; by default the one that lies beside this package.

        Raises:
            RRTEdgeError: the bundle is missing or damaged or has no such point, or `sure` is no probability.
        """
        if bundle is None and not (BUNDLE / "manifest.json").is_file():
            raise BadInputError(f"{BUNDLE}: the proofreader's bundle is not there; name one with --bundle")
        model = Model.load(BUNDLE if bundle is None else bundle, threads=threads)
        try:
            return cls(model, point, sure)
        except BaseException:
            model.close()
            raise

    def __enter__(self) -> Proofreader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.model.close()

    def correct(
        self,
        text: str,
        *,
        is_markdown: bool = False,
        is_stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Corrected:
        """Correct a text; all that is no prose, white space included, stays as it is.

        Args:
            is_markdown: code, links' targets, tables, HTML and front matter are not touched.
            is_stopped: asked after each step of the model.
            progress: called with how many pieces of how many are done.

        Raises:
            Stopped: `is_stopped` said so.
            RRTEdgeError: the model cannot run.
        """
        passages = markdown.find_prose(text) if is_markdown else plain_text.find_prose(text)
        pieces = [piece for prose in passages for piece in cut(prose)]
        replies = self._read(pieces, is_stopped, progress)
        # What fails together may go well alone.
        parts = [part for piece in pieces for part in ([piece] if replies[piece.text].is_usable else cut(piece, 1))]
        if len(parts) > len(pieces):
            pieces, replies = parts, self._read(parts, is_stopped, progress)
        edits: list[Edit] = []
        left: list[Left] = []
        runs: list[Run] = []
        for piece in pieces:
            reply = replies[piece.text]
            if reply.is_usable:
                changed, kept = corrections(piece, reply, self.sure, "\u2019" in text)
                edits += changed
                runs += kept
            elif reply.problem:
                left.append(Left(piece.starts[0], piece.ends[-1], reply.problem))
        edits = without_overlaps(edits)
        if is_markdown:
            edits = keep_structure(text, edits)
        depths = [token.depth for reply in replies.values() for token in reply.tokens]
        mean = sum(depths) / len(depths) if depths else 0.0
        return Corrected(text, tuple(edits), tuple(left), tuple(runs), len(depths), mean)

    def _read(
        self, pieces: Iterable[Prose], is_stopped: Callable[[], bool], progress: Callable[[int, int], None]
    ) -> dict[str, Reply]:
        """The replies to pieces, by their texts."""
        replies, waiting = {}, []
        for text in dict.fromkeys(piece.text for piece in pieces):
            reason = reason_to_skip(text)
            with self._lock:
                reply = self._replies.get(text) if reason is None else Reply("", (), (), reason)
            if reply is None:
                waiting.append(text)
            else:
                replies[text] = reply
        total = len(replies) + len(waiting)
        for text, reply in generate(self.model, self.policy, waiting, is_stopped):
            replies[text] = reply
            progress(len(replies), total)
            with self._lock:
                self._replies[text] = reply
                while len(self._replies) > KEPT:
                    self._replies.popitem(last=False)
        return replies
