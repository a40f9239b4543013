"""The documentation is true: it builds, its code runs, its commands parse, its error lines are those that come.

A ```python block runs behind those above it on its page, in a folder that holds `bundle` (the demo's), `recursive` (its
checkpoint) and `teacher`. One that must not run has a comment in front of it: <!-- not run: the reason -->
What one prints stands in a ```text block right behind it; there `...` is any text.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

import rrt_edge.exporters
import rrt_edge.runtime
from rrt_edge.cli import main
from rrt_edge.exporters import export
from rrt_edge.runtime.decoding.exit_policy import FORMS, POINTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PYDOC = ROOT / "samples" / "pydoc"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
OPERATOR = re.compile(r"[|<>&;]+")


@dataclass(frozen=True)
class Block:
    """A code block of a page, the line its code begins at, the reason where it must not run, and what it prints."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None
    printed: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found, comment, behind_python = [], "", False
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type in ("fence", "code_block"):
            fenced = token.type == "fence"
            reason = NOT_RUN.search(comment)
            line = (token.map or [0, 0])[0] + fenced + 1
            block = Block(page, line, token.info.strip(), token.content, reason[1] if reason else None)
            if behind_python and block.language == "text":
                found[-1] = replace(found[-1], printed=token.content)
            else:
                found.append(block)
        behind_python = token.type == "fence" and token.info.strip() == "python"
        comment = token.content if token.type == "html_block" else ""
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = {page: [block for block in BLOCKS if block.page == page and block.language == "python"] for page in PAGES}


def commands(line: str) -> list[list[str]]:
    """The arguments of each `rrt-edge` of a shell line; what it is piped from or written to is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if OPERATOR.fullmatch(word):
            found.append([])
        else:
            found[-1].append(word)
    return [words[1:] for words in found if words[:1] == ["rrt-edge"]]


def shell_lines(block: Block) -> list[str]:
    """The lines of a block that hold `rrt-edge`, continued ones joined; what a command printed is no command."""
    joined = block.code.replace("\\\n", " ").splitlines()
    return [line for line in map(str.strip, joined) if re.match(r"(echo .*\| )?rrt-edge [^:]", line)]


LINES = [(f"{block}", line) for block in BLOCKS if block.language in ("", "sh", "bash") for line in shell_lines(block)]
SPANS = [
    (str(page.relative_to(ROOT)), span)
    for page in PAGES
    for token in MarkdownIt().enable("table").parse(page.read_text("utf-8"))
    for child in token.children or []
    if child.type == "code_inline" and (span := child.content).startswith("rrt-edge ")
]


def parsed(arguments: list[str]) -> None:
    """Parse a command line as click does, without running it; fails where click would."""
    context = main.make_context("rrt-edge", list(arguments))
    name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("docs") / "bundle"
    export(PYDOC / "recursive", bundle)
    return bundle


@pytest.fixture
def workplace(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the docs' code runs; the user's own bundles are out of its sight."""
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    for name in ("teacher", "recursive"):
        shutil.copytree(PYDOC / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "home"))
    return tmp_path


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("mkdocs", "material", "mkdocstrings_handlers", "mkdocs_click") if not find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'rrt-edge[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Loaded(HTMLParser):
    """The addresses that a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag != "a":
            self.addresses += [value for name in ("src", "href", "data") if (value := given.get(name))]


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert loaded.addresses
        assert not [address for address in loaded.addresses if re.match(r"(\w+:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(\w+:)?//", style.read_text("utf-8")), style


def test_the_references_tell_of_every_public_name_and_command(site: Path) -> None:
    for module, page in ((rrt_edge.runtime, "runtime"), (rrt_edge.exporters, "exporters")):
        text = (site / "reference" / f"{page}.html").read_text("utf-8")
        assert [name for name in module.__all__ if f'id="{module.__name__}.{name}"' not in text] == []
    ours = "".join((site / "reference" / f"{page}.html").read_text("utf-8") for page in ("rrt_edge", "exporters"))
    names = [name for name in rrt_edge.__all__ if not name.endswith("Error")]
    assert [name for name in names if not re.search(rf'id="rrt_edge\.(exporters\.)?{name}"', ours)] == []
    lines = (site / "reference" / "cli.html").read_text("utf-8")
    assert [name for name in main.commands if f'id="rrt-edge-{name}"' not in lines] == []
    assert "Sentinel" not in lines
    for page in (site / "reference").glob("*.html"):
        signatures = re.sub(r"<[^>]+>", "", page.read_text("utf-8"))
        assert "= option(" not in signatures, page  # but the default that it names


def test_the_pictures_are_what_their_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", str(DOCS / "pictures.py"), str(tmp_path)], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes()
        for path in DOCS.glob("*.svg")
        if path.name != "proofread.svg"  # the sample's
    }


def test_the_public_names_are_those_of_the_sources(tmp_path: Path) -> None:
    page = DOCS / "reference" / "names.md"
    subprocess.run([sys.executable, "-P", "-B", str(DOCS / "public_names.py"), str(tmp_path / "page")], check=True)
    assert (tmp_path / "page").read_text("utf-8") == page.read_text("utf-8"), "run python docs/public_names.py"
    names = {name for module in (rrt_edge, rrt_edge.runtime, rrt_edge.exporters) for name in module.__all__}
    assert len(names) <= 40
    listed = re.findall(r"^(?:class |def )?(\w+)(?:\(.*|:| = .*)$", page.read_text("utf-8"), re.M)
    assert names <= set(listed)


# The pages


@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if found], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_and_prints_what_it_shows(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    namespace = {"__name__": "__main__"}
    for block in PYTHON[page]:
        if block.not_run is None:
            code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
            capsys.readouterr()
            exec(compile(code, str(page), "exec"), namespace)
            printed = capsys.readouterr().out
            assert checker.check_output(block.printed, printed.rstrip("\n") + "\n" if printed else "", flags), (
                f"{block} prints\n{printed}"
            )


def test_few_blocks_do_not_run() -> None:
    python = [block for found in PYTHON.values() for block in found]
    assert sum(block.not_run is not None for block in python) * 4 <= len(python)


@pytest.mark.parametrize(("where", "line"), LINES, ids=[f"{where} {line[:40]}" for where, line in LINES])
def test_a_command_line_parses(where: str, line: str) -> None:
    found = commands(line)
    assert found
    for arguments in found:
        parsed(arguments)


def test_the_examples_of_commands_parse() -> None:
    for command in main.commands.values():
        example = re.fullmatch(r"Example: (rrt-edge .+?)(, then .+)?", command.epilog or "")
        assert example, command.name
        for arguments in commands(example[1]):
            parsed(arguments)


@pytest.mark.parametrize(("where", "span"), SPANS, ids=[f"{where} {span}" for where, span in SPANS])
def test_a_command_in_the_text_exists(where: str, span: str) -> None:
    """It may leave arguments out, and have COMMAND in the place of one."""
    ((*arguments,),) = commands(span)
    name = next(word for word in arguments if not word.startswith("-"))
    parameters = main.params if name == "COMMAND" else main.commands[name].params
    known = {"--help", *(option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts))}
    assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known


def test_scripts_that_pages_name_exist() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"(?:python|sh) ((?:\w+/)+\w+\.\w+)", page.read_text("utf-8"))
    }
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_links_between_files_lead_somewhere_in_the_repository_too() -> None:
    """A code host shows the pages as they are, without what docs/hooks.py makes of them."""
    wrong = []
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "samples").rglob("*.md")]:
        text = page.read_text("utf-8")
        links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", text) + re.findall(r'(?:src|href)="(?!\w+:)([^"#]+)', text)
        wrong += [f"{page.relative_to(ROOT)}: {link}" for link in links if not (page.parent / link).exists()]
    assert not wrong


def test_how_to_add_names_files_and_lines_that_there_are() -> None:
    page = DOCS / "how-to-add.md"
    named = set(re.findall(r"`((?:\w+/)+\w+\.\w+)`", page.read_text("utf-8"))) - {"rrt_edge/cli/NAME.py"}
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    excerpts = [block for block in blocks(page) if block.language == "diff"]
    assert excerpts
    for block in excerpts:
        where, *lines = block.code.splitlines()
        path = ROOT / where.removeprefix("+++ ")
        known = path.read_text("utf-8").splitlines()
        assert [line for line in lines if line.startswith(" ") and line[1:] not in known] == [], f"{block}"


# The errors


def faulty(workplace: Path, stranger: Path) -> None:
    """What troubleshooting.md's commands meet beside good folders."""
    bundle = workplace / "bundle"
    for name in ("cut", "changed", "older"):
        shutil.copytree(bundle, workplace / name)
    os.truncate(workplace / "cut" / "model.onnx.data", 1000)
    tokenizer = workplace / "changed" / "tokenizer.json"
    tokenizer.write_bytes(b" " + tokenizer.read_bytes()[1:])
    manifest = json.loads((workplace / "older" / "manifest.json").read_text("utf-8"))
    (workplace / "older" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 0}), "utf-8")
    rrt_edge.convert("teacher", "converted", loops=2)
    rrt_edge.convert("teacher", "thirds", loops=3)
    shutil.copytree(workplace / "converted", workplace / "speechless")
    (workplace / "speechless" / "chat_template.jinja").unlink()
    export("speechless", "plain")
    shutil.copytree(stranger, workplace / "stranger")
    config = json.loads((workplace / "teacher" / "config.json").read_text("utf-8"))
    changes = {"quantised": {"quantization_config": {"quant_method": "gptq"}}, "mixture": {"num_local_experts": 8}}
    for name, change in changes.items():
        (workplace / name).mkdir()
        (workplace / name / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    (workplace / "adapter").mkdir()
    (workplace / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    chat = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    for name, text in {
        "chats.jsonl": chat, "broken.jsonl": f'{chat}\n{{"messages": [', "few.txt": "A line or two.", "notes.csv": "a,b"
    }.items():  # fmt: skip
        (workplace / name).write_text(text, "utf-8")


def told() -> list[tuple[str, str]]:
    """The command lines of troubleshooting.md, and the error line behind each."""
    found = []
    for block in blocks(DOCS / "troubleshooting.md"):
        command, *errors = block.code.strip().splitlines()
        assert command.startswith("rrt-edge ") and len(errors) == 1 and errors[0].startswith("error: "), str(block)
        found.append((command, errors[0]))
    return found


def comparable(line: str) -> str:
    """An error line without what changes with the demo or the machine: numbers, hashes, the folder, the slashes."""
    told = line.replace(str(Path.cwd()), "/home/you").replace("\\", "/")
    return re.sub(r"\d+", "0", re.sub(r"\b[0-9a-f]{32}\b", "NAME", told))


def test_errors_are_the_lines_that_troubleshooting_tells_of(
    workplace: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty(workplace, source)
    wrong = []
    for command, expected in told():
        with monkeypatch.context() as patch:
            if "which is not installed" in expected:
                patch.setitem(sys.modules, "accelerate", None)  # as an environment without it
            if "ExecutionProvider is not installed" in expected:
                patch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
                patch.setitem(sys.modules, "onnxruntime_ep_cuda", None)
            result = CliRunner().invoke(main, shlex.split(command)[1:])
        last = (result.stderr.strip().splitlines() or [f"no error; {result.exception!r}"])[-1]
        if comparable(last) != comparable(expected) or result.exit_code not in (1, 2):
            wrong.append(f"{command}\n  told:  {expected}\n  found: {last}")
    assert not wrong, "\n".join(wrong)


def test_the_concepts_list_every_exit_policy() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    table = page.partition("| policy | a token |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert table[:-1] == [f"| `{form.text}` | {form.does} |" for form in FORMS]
    assert all(f"`{name}`" in table[-1] for name in POINTS)


def test_the_architecture_names_files_that_are_there() -> None:
    wrong, count = [], 0
    for line in (DOCS / "architecture.md").read_text("utf-8").splitlines():
        spans = re.findall(r"`([\w./-]+(?:\.py|\.toml|/))`", line)
        rooms = [ROOT, *(ROOT / span for span in spans if span.endswith("/")), ROOT / "runtime"]
        wrong += [span for span in spans if not any((room / span).exists() for room in rooms)]
        count += len(spans)
    assert not wrong and count > 100
