"""`python samples/proofread`: correct files or a pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import showing
from files import Document, UnusableError, read, replace
from proofread import Corrected, Proofreader
from proofread.proofreader import SURE

from rrt_edge.runtime import RRTEdgeError

NAME = "python samples/proofread"
MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd")
STATUS = """\
exit status:
  0  with --check, --diff and --in-place: there was nothing to change; else: all went well
  1  with --check, --diff and --in-place: there were changes
  2  a file could not be read or written, or the bundle could not be used

also:
  python samples/proofread lsp     a language server for editors
  python samples/proofread serve   a page for the browser
"""


def is_markdown(name: str) -> bool:
    """Whether a file is Markdown by its name."""
    return name.lower().endswith(MARKDOWN)


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """What all faces of the proofreader take."""
    parser.add_argument(
        "--bundle", metavar="DIR", help="the proofreader's bundle; by default the one beside this program"
    )
    parser.add_argument(
        "--point", metavar="NAME", help="operating point: fast, balanced or faithful, or another exit policy"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads that the model computes with")
    parser.add_argument(
        "--sure", type=float, default=SURE, metavar="P", help="make only changes that the model gives at least this "
        "probability, from 0 to 1 (default: %(default)s); a higher one makes fewer changes, and fewer wrong ones"
    )  # fmt: skip


def load(options: argparse.Namespace) -> Proofreader:
    """The proofreader that these options ask for.

    Raises:
        RRTEdgeError: as `Proofreader.load`.
    """
    return Proofreader.load(options.bundle, options.point, options.threads, options.sure)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=NAME,
        description="Correct English texts with a model on this machine. What changed is shown in colours on a\n"
        "terminal; a pipe gets the corrected text alone. What is no prose stays as it is, to the last byte.",
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts in UTF-8; none, or -: standard input")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="print no text, only which files have something to change")
    how.add_argument("--diff", action="store_true", help="print a unified diff")
    how.add_argument("--in-place", action="store_true", help="write the files anew")
    how.add_argument("--show-depth", action="store_true", help="colour each token by the loop it left the model at")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="read as Markdown, whatever the file is called")
    form.add_argument("--text", action="store_true", help="read as plain text, whatever the file is called")
    add_bundle_options(made)
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    documents, status = [], 0
    for path in options.files or [Path("-")]:
        try:
            if options.in_place and str(path) == "-":
                raise UnusableError("standard input: --in-place needs a file")
            documents.append(read(path))
        except UnusableError as error:
            status = complain(error)
    if not documents:
        return status
    try:
        with load(options) as proofreader:
            for document in documents:
                try:
                    changed = proofread(proofreader, document, options)
                except UnusableError as error:
                    status = complain(error)
                else:
                    status = max(status, int(changed and (options.check or options.diff or options.in_place)))
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
    except RRTEdgeError as error:
        return complain(error)
    return status


def proofread(proofreader: Proofreader, document: Document, options: argparse.Namespace) -> bool:
    """Correct a document and show or write the result; whether something changed."""
    form = options.markdown or (not options.text and is_markdown(document.path.name))
    with showing.progress(document.name) as progress:
        corrected = proofreader.correct(document.text, is_markdown=form, progress=progress)
    changes = len(corrected.edits)
    if options.in_place and changes:
        replace(document, corrected.text)
    if options.diff:
        showing.diff(document.name, corrected)
    elif options.check or options.in_place:
        if changes:
            print(f"{document.name}: {showing.count(changes, 'correction')}")
    else:
        showing.text(corrected, options.show_depth, proofreader.model.loops)
    _say_what_was_left(document, corrected)
    return bool(changes)


def _say_what_was_left(document: Document, corrected: Corrected) -> None:
    for left in corrected.left:
        line = document.text.count("\n", 0, left.start) + 1
        sys.stderr.write(f"{document.name}:{line}: left as it was: {left.reason}\n")


def complain(error: Exception) -> int:
    sys.stderr.write(f"error: {error}\n")
    return 2
