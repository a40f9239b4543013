"""The proofreader's language server, with pygls' client over its standard streams."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.samples.proofreader import LOOP

lsp = pytest.importorskip("lsprotocol.types", reason="needs pygls: pip install -e '.[dev]'")
from pygls.lsp.client import LanguageClient  # noqa: E402

URI = "file:///note.txt"
TEXT = "\U0001f600 is a smile.\n\n  He go to school every day.\r\n\r\nI seen the the dog.\n"
Talk = Callable[["Editor"], Awaitable[None]]


class Editor:
    """A client that keeps what the server tells it."""

    def __init__(self) -> None:
        self.client = LanguageClient("tests", "1")
        self.published: asyncio.Queue[Any] = asyncio.Queue()
        self.progress: asyncio.Queue[Any] = asyncio.Queue()

        @self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def publish(event: Any) -> None:
            self.published.put_nowait(event)

        @self.client.feature(lsp.WINDOW_WORK_DONE_PROGRESS_CREATE)
        def create(event: Any) -> None:
            """Every token is taken."""

        @self.client.feature(lsp.PROGRESS)
        def progress(event: Any) -> None:
            self.progress.put_nowait(event)

    async def start(self, bundle: Path, units: list[Any] | None, shows_progress: bool) -> None:
        program = ["-P", str(ROOT / "samples" / "proofread"), "lsp", "--bundle", str(bundle), "--point", "balanced"]
        await self.client.start_io(sys.executable, *program)
        capabilities = lsp.ClientCapabilities(
            general=lsp.GeneralClientCapabilities(position_encodings=units),
            window=lsp.WindowClientCapabilities(work_done_progress=shows_progress),
        )
        answer = await self.client.initialize_async(lsp.InitializeParams(capabilities))
        self.capabilities = answer.capabilities
        self.client.initialized(lsp.InitializedParams())

    def open(self, text: str, language: str = "plaintext", uri: str = URI) -> None:
        item = lsp.TextDocumentItem(uri, language, 1, text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))

    def change(self, text: str, version: int) -> None:
        document = lsp.VersionedTextDocumentIdentifier(version, URI)
        event = lsp.DidChangeTextDocumentParams(document, [lsp.TextDocumentContentChangeWholeDocument(text)])
        self.client.text_document_did_change(event)

    async def findings(self) -> list[tuple[tuple[int, int, int, int], str]]:
        event = await self.published.get()
        return [(place(one.range), one.message) for one in event.diagnostics]

    async def actions(self, start: tuple[int, int], end: tuple[int, int], only: list[str] | None = None) -> list[Any]:
        where = lsp.Range(lsp.Position(*start), lsp.Position(*end))
        context = lsp.CodeActionContext([], only)
        request = lsp.CodeActionParams(lsp.TextDocumentIdentifier(URI), where, context)
        return list(await self.client.text_document_code_action_async(request) or [])


def place(where: Any) -> tuple[int, int, int, int]:
    return where.start.line, where.start.character, where.end.line, where.end.character


def talk(bundle: Path, conversation: Talk, units: list[Any] | None = None, shows_progress: bool = False) -> int:
    """Have an editor talk to a server; the server's exit status."""

    async def whole() -> int:
        editor = Editor()
        await editor.start(bundle, units, shows_progress)
        try:
            await asyncio.wait_for(conversation(editor), 60)
            await editor.client.shutdown_async(None)
        finally:
            editor.client.exit(None)
            server = editor.client._server
            status = await asyncio.wait_for(server.wait(), 60)
            await editor.client.stop()
        return status

    return asyncio.run(whole())


def fixed(text: str, edits: list[Any]) -> str:
    """The text after an editor made the edits, whose positions count UTF-16 units."""
    lines = text.replace("\r\n", "\n").split("\n")
    for edit in sorted(edits, key=lambda edit: place(edit.range), reverse=True):
        line, start, end_line, end = place(edit.range)
        assert line == end_line
        units = lines[line].encode("utf-16-le")
        lines[line] = (units[: 2 * start] + edit.new_text.encode("utf-16-le") + units[2 * end :]).decode("utf-16-le")
    return "\n".join(lines)


@pytest.mark.parametrize(("units", "width"), [(None, 3), (["utf-8", "utf-16"], 7), (["utf-32"], 2)])
def test_findings_stand_where_the_editor_counts(proofreader_bundle: Path, units: list[str] | None, width: int) -> None:
    """In front, in a tag that the model never sees, stand a face and what ends a line for Python alone."""

    async def conversation(editor: Editor) -> None:
        editor.open('x\r\r<b title="\U0001f600\u2028">I seen the the dog.</b>\n', "markdown")
        start = len('<b title="">I ') + width
        places = [where for where, _ in await editor.findings()]
        assert places == [(2, start, 2, start + 4), (2, start + 8, 2, start + 12)]

    assert talk(proofreader_bundle, conversation, units) == 0


def test_a_document_is_read_when_opened_changed_and_closed(proofreader_bundle: Path) -> None:
    async def conversation(editor: Editor) -> None:
        editor.open(TEXT)
        expected = [
            ((2, 5, 2, 7), "\u201cgo\u201d: write \u201cgoes\u201d"),
            ((4, 2, 4, 6), "\u201cseen\u201d: write \u201csaw\u201d"),
            ((4, 10, 4, 14), "leave out \u201cthe\u201d"),
        ]
        assert await editor.findings() == expected
        editor.change(TEXT.replace("He go", "\n\nHe go"), 2)
        editor.change(TEXT.replace("go", "goes"), 3)  # before the one before is read
        event = await editor.published.get()
        assert event.version == 3 and [place(one.range) for one in event.diagnostics] == [
            place_ for place_, _ in expected[1:]
        ]
        editor.client.text_document_did_close(lsp.DidCloseTextDocumentParams(lsp.TextDocumentIdentifier(URI)))
        assert await editor.findings() == []
        assert await editor.actions((0, 0), (9, 0)) == []

    assert talk(proofreader_bundle, conversation) == 0


def test_fixes_one_by_one_and_all_at_once(proofreader_bundle: Path) -> None:
    async def conversation(editor: Editor) -> None:
        kinds = editor.capabilities.code_action_provider.code_action_kinds
        assert list(kinds) == ["quickfix", "source.fixAll.proofread"]
        editor.open(TEXT)
        await editor.findings()
        one, everything = await editor.actions((2, 6), (2, 6))
        assert (
            one.title == "Proofread: \u201cgo\u201d: write \u201cgoes\u201d"
            and one.diagnostics[0].source == "proofread"
        )
        assert fixed(TEXT, one.edit.changes[URI]) == TEXT.replace("\r\n", "\n").replace("He go", "He goes")
        right = TEXT.replace("\r\n", "\n").replace("He go", "He goes").replace("seen the the", "saw the")
        assert fixed(TEXT, everything.edit.changes[URI]) == right
        (at_save,) = await editor.actions((0, 0), (0, 0), ["source.fixAll"])
        assert at_save.kind == "source.fixAll.proofread" and fixed(TEXT, at_save.edit.changes[URI]) == right
        assert await editor.actions((0, 0), (0, 0)) == [] and len(await editor.actions((0, 0), (9, 0))) == 4
        assert await editor.actions((0, 0), (9, 0), ["refactor"]) == []

    assert talk(proofreader_bundle, conversation) == 0


def test_markdown_by_language_and_by_name(proofreader_bundle: Path) -> None:
    text = "    He go to school every day.\n\n`x`\n"

    async def conversation(editor: Editor) -> None:
        for language, uri, count in (
            ("markdown", URI, 0),
            ("plaintext", "file:///a.md", 0),
            ("plaintext", "file:///a.txt", 1),
        ):
            editor.open(text, language, uri)
            assert len(await editor.findings()) == count

    assert talk(proofreader_bundle, conversation) == 0


MANY = "\n\n".join(f"{LOOP} It is number {number}." for number in range(3000))


def test_progress_is_shown_and_cancelling_it_stops_the_model(proofreader_bundle: Path) -> None:
    async def conversation(editor: Editor) -> None:
        editor.open(MANY)
        begin = await editor.progress.get()
        assert begin.value["title"] == "Proofreading" and begin.value["cancellable"]
        editor.client.window_work_done_progress_cancel(lsp.WorkDoneProgressCancelParams(begin.token))
        events = []
        while not events or events[-1].value["kind"] != "end":
            events.append(await editor.progress.get())
        assert all(event.value["percentage"] < 50 for event in events[:-1])
        editor.change("He go to school every day.", 2)
        assert len(await editor.findings()) == 1

    assert talk(proofreader_bundle, conversation, shows_progress=True) == 0


@pytest.mark.parametrize("ending", ["changed", "closed", "gone"])
def test_what_is_outdated_stops_at_once(proofreader_bundle: Path, ending: str) -> None:
    """All of `MANY` would take minutes."""

    async def conversation(editor: Editor) -> None:
        editor.open(MANY)
        await editor.progress.get()
        if ending == "changed":
            editor.change("He go to school every day.", 2)
            event = await editor.published.get()
            assert event.version == 2 and len(event.diagnostics) == 1
        elif ending == "closed":
            editor.client.text_document_did_close(lsp.DidCloseTextDocumentParams(lsp.TextDocumentIdentifier(URI)))
            assert await editor.findings() == []
            while (await editor.progress.get()).value["kind"] != "end":
                pass

    assert talk(proofreader_bundle, conversation, shows_progress=True) == 0
