"""`python samples/proofread lsp`: a language server that underlines what it would correct, and offers to."""

from __future__ import annotations

import argparse
import asyncio
import bisect
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Event

from command import add_bundle_options, complain, is_markdown, load

try:
    from lsprotocol import types as lsp
    from pygls.lsp.server import LanguageServer
except ImportError:
    sys.exit(complain(ModuleNotFoundError("the language server needs pygls: pip install 'rrt-edge[lsp]'")))

from proofread import Corrected, Edit, Proofreader, Stopped

from rrt_edge import __version__
from rrt_edge.runtime import RRTEdgeError

SOURCE = "proofread"
FIX_ALL = "source.fixAll.proofread"
DELAY = 0.4  # seconds without a change before a document is read
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


@dataclass
class Reading:
    """A document as it was at one version, and what was found in it; `stop` ends the reading."""

    version: int | None
    text: str
    stop: Event = field(default_factory=Event)
    corrected: Corrected | None = None
    task: asyncio.Task[None] | None = None


class ProofreadServer(LanguageServer):
    """One model for all documents, which are read one after the other in a thread beside the event loop."""

    def __init__(self, proofreader: Proofreader, delay: float = DELAY) -> None:
        # Whole documents: pygls takes more characters for line ends than the protocol does.
        super().__init__("rrt-edge-proofread", __version__, text_document_sync_kind=lsp.TextDocumentSyncKind.Full)
        self.proofreader, self.delay = proofreader, delay
        self.readings: dict[str, Reading] = {}
        self.turn = asyncio.Lock()

    def read(self, uri: str, delay: float) -> None:
        """Read a document anew; what is outdated by that stops at once."""
        document = self.workspace.get_text_document(uri)
        self.forget(uri)
        reading = self.readings[uri] = Reading(document.version, document.source)
        reading.task = asyncio.ensure_future(self._read(uri, reading, delay))

    def forget(self, uri: str) -> None:
        reading = self.readings.pop(uri, None)
        if reading is not None:
            reading.stop.set()

    async def _read(self, uri: str, reading: Reading, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            async with self.turn:
                await self._correct(uri, reading)
        except Stopped:
            return
        except RRTEdgeError as error:
            self.window_show_message(lsp.ShowMessageParams(lsp.MessageType.Error, f"{SOURCE}: {error}"))
            return
        if not reading.stop.is_set():
            diagnostics = [diagnostic for _, diagnostic in self.findings(reading)]
            self.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, diagnostics, reading.version))

    async def _correct(self, uri: str, reading: Reading) -> None:
        """Correct the text beside the event loop; the editor shows how far it is, and may cancel it."""
        if reading.stop.is_set():
            raise Stopped
        document, loop = self.workspace.get_text_document(uri), asyncio.get_running_loop()
        form = document.language_id == "markdown" or is_markdown(uri)
        window, token = self.client_capabilities.window, str(uuid.uuid4())
        shows = bool(window and window.work_done_progress)
        if shows:
            await self.work_done_progress.create_async(token)
            self.work_done_progress.begin(
                token, lsp.WorkDoneProgressBegin("Proofreading", cancellable=True, percentage=0)
            )

        def is_stopped() -> bool:
            return reading.stop.is_set() or (shows and self.work_done_progress.tokens[token].cancelled())

        def progress(done: int, total: int) -> None:
            if shows:
                report = lsp.WorkDoneProgressReport(percentage=100 * done // total)
                loop.call_soon_threadsafe(self.work_done_progress.report, token, report)

        try:
            reading.corrected = await asyncio.to_thread(
                self.proofreader.correct, reading.text, is_markdown=form, is_stopped=is_stopped, progress=progress
            )
        except asyncio.CancelledError:  # the server ends, and nobody listens any more
            reading.stop.set()
            shows = False
            raise
        finally:
            if shows:
                self.work_done_progress.end(token, lsp.WorkDoneProgressEnd())

    def findings(self, reading: Reading) -> list[tuple[Edit, lsp.Diagnostic]]:
        """What is to be changed in a document that has been read, as edits and as the editor shows them."""
        if reading.corrected is None:
            return []
        ranges = self.ranges(reading.text, reading.corrected.edits)
        return [
            (
                edit,
                lsp.Diagnostic(where, _message(reading.text, edit), lsp.DiagnosticSeverity.Information, source=SOURCE),
            )
            for edit, where in zip(reading.corrected.edits, ranges, strict=True)
        ]

    def ranges(self, text: str, edits: Sequence[Edit]) -> list[lsp.Range]:
        """Where edits stand, in lines and in the units that the editor counts (UTF-16, unless it asked for others)."""
        lines = [match.group() for match in LINE.finditer(text)]
        starts = [0, *accumulate(map(len, lines))]
        units = self.workspace.position_codec.client_num_units

        def position(at: int) -> lsp.Position:
            line = bisect.bisect_right(starts, at, hi=len(lines)) - 1
            return lsp.Position(line, units(lines[line][: at - starts[line]]))

        return [lsp.Range(position(edit.start), position(edit.end)) for edit in edits]


def _message(text: str, edit: Edit) -> str:
    removed, inserted = text[edit.start : edit.end].strip(), edit.replacement.strip()
    if removed and inserted:
        return f"\u201c{removed}\u201d: write \u201c{inserted}\u201d"
    return f"leave out \u201c{removed}\u201d" if removed else f"put in \u201c{inserted}\u201d" if inserted else "spaces"


def make_server(proofreader: Proofreader, delay: float = DELAY) -> ProofreadServer:
    """The server, before it talks to an editor."""
    server = ProofreadServer(proofreader, delay)

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def opened(server: ProofreadServer, event: lsp.DidOpenTextDocumentParams) -> None:
        server.read(event.text_document.uri, 0)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def changed(server: ProofreadServer, event: lsp.DidChangeTextDocumentParams) -> None:
        server.read(event.text_document.uri, server.delay)

    @server.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    def saved(server: ProofreadServer, event: lsp.DidSaveTextDocumentParams) -> None:
        server.read(event.text_document.uri, 0)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def closed(server: ProofreadServer, event: lsp.DidCloseTextDocumentParams) -> None:
        server.forget(event.text_document.uri)
        server.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(event.text_document.uri, []))

    kinds = lsp.CodeActionOptions([lsp.CodeActionKind.QuickFix, FIX_ALL])

    @server.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, kinds)
    def actions(server: ProofreadServer, request: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        return _actions(server, request)

    return server


def _actions(server: ProofreadServer, request: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    """A fix for each finding that touches the range, and one for all of the document."""
    uri, only = request.text_document.uri, request.context.only
    reading = server.readings.get(uri)
    if reading is None or reading.text != server.workspace.get_text_document(uri).source:
        return []
    findings = server.findings(reading)
    changes = {id(edit): lsp.TextEdit(diagnostic.range, edit.replacement) for edit, diagnostic in findings}
    touched = [diagnostic for _, diagnostic in findings if _touch(diagnostic.range, request.range)]
    made = []
    if _is_requested(lsp.CodeActionKind.QuickFix, only):
        for edit, diagnostic in findings:
            if diagnostic in touched:
                made.append(
                    _action(f"Proofread: {diagnostic.message}", lsp.CodeActionKind.QuickFix, uri, [changes[id(edit)]])
                )
                made[-1].diagnostics = [diagnostic]
        if touched and len(findings) > 1:
            title = f"Proofread: all {len(findings)} corrections of this document"
            made.append(_action(title, lsp.CodeActionKind.QuickFix, uri, list(changes.values())))
    if findings and only is not None and _is_requested(FIX_ALL, only):  # as editors do when they save
        made.append(_action("Proofread: fix all", FIX_ALL, uri, list(changes.values())))
    return made


def _action(title: str, kind: str, uri: str, edits: Sequence[lsp.TextEdit]) -> lsp.CodeAction:
    return lsp.CodeAction(title, kind, edit=lsp.WorkspaceEdit({uri: edits}))


def _is_requested(kind: str, only: Sequence[str] | None) -> bool:
    """Whether an editor that asks for some kinds alone wants this one; a kind stands for those below it."""
    return only is None or any(not parent or kind == parent or kind.startswith(parent + ".") for parent in only)


def _touch(first: lsp.Range, second: lsp.Range) -> bool:
    def key(position: lsp.Position) -> tuple[int, int]:
        return position.line, position.character

    return key(first.start) <= key(second.end) and key(second.start) <= key(first.end)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python samples/proofread lsp", description=__doc__)
    add_bundle_options(parser)
    options = parser.parse_args(arguments)
    try:
        with load(options) as proofreader:
            make_server(proofreader).start_io()
    except RRTEdgeError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
