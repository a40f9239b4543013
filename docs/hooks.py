"""What the site needs beyond the pages in docs/: the project's other texts, and the package as it is installed."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rrt_edge.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # file of the repository: page of the site
    "README.md": "project/readme.md",
    "samples/pydoc/README.md": "project/demo.md",
    "samples/proofread/README.md": "project/proofreader.md",
    "samples/proofread/heldout/README.md": "project/peoples-texts.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
PACKAGES = ("rrt_edge", "rrt_edge.runtime", "rrt_edge.exporters")
EXAMPLE = re.compile(r"Example: (.+?)((?:, then .+)?)")  # of a command, and what to do behind it
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+\.(?:md|svg|png))")
_installed: tempfile.TemporaryDirectory[str] | None = None


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the package in one tree; in a checkout its three folders stand side by side."""
    global _installed
    _installed = tempfile.TemporaryDirectory(prefix="rrt-edge-docs-")  # removed when replaced, or at exit
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is not installed"
        target = Path(_installed.name, *package.split("."))
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(spec.origin).parent, target, ignore=ignored, dirs_exist_ok=True)
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers.setdefault("python", {})["paths"] = [_installed.name]
    _show_examples()
    return config


def _show_examples() -> None:
    """Put the example of each command, which mkdocs-click leaves out, behind its description."""
    for command in main.commands.values():
        example = EXAMPLE.fullmatch(command.epilog or "")
        if example and example[1] not in (command.help or ""):
            command.help = f"{command.help}\n\nExample: `{example[1]}`{example[2]}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to the pages made of them."""
    sources = {target: source for source, target in PAGES.items()}
    here = Path(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def moved(link: re.Match[str]) -> str:
        wanted = _normal(here / link[1])
        target = PAGES.get(wanted, wanted.removeprefix("docs/"))
        return _relative(target, Path(page.file.src_uri).parent)

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave the default of an option that has none empty: mkdocs-click prints click's own mark for it."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def _normal(path: Path) -> str:
    """A path of the repository without `..`."""
    return (ROOT / path).resolve().relative_to(ROOT).as_posix()


def _relative(target: str, folder: Path) -> str:
    """The way to a page from a folder of the site."""
    return "/".join([*[".."] * len(folder.parts), target])
