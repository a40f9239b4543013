"""`rrt-edge run`: a source is exported once, found again by what it holds, and answers as its bundle does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import rrt_edge.exporters
from rrt_edge.cli import main
from rrt_edge.cli.chat.view import visible
from rrt_edge.exporters import export
from rrt_edge.runtime import Manifest, Model, Sampling
from tests.cli.chat.test_terminal import Terminal, needs_terminal
from tests.cli.test_start import MAIN, WITHOUT
from tests.families import random_model
from tests.gguf_files import write_gguf

WIDE = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
WAITING = """
import sys
import rrt_edge.exporters.bundle as bundle
def wait(*arguments, **options):
    print("exporting", flush=True)
    sys.stdin.readline()
bundle.write_manifest = wait
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user who has installed nothing."""
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sources that are exported."""
    sources: list[Any] = []

    def watched(source: Any, *arguments: Any, **options: Any) -> Any:
        sources.append(source)
        return export(source, *arguments, **options)

    monkeypatch.setattr(rrt_edge.exporters, "export", watched)
    return sources


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)], input=text)


def reply(*arguments: object) -> Any:
    """The answer to a prompt, as JSON."""
    done = run(*arguments, "The cat", "--max-tokens", 4, "--temperature", 0, "--json")
    assert done.exit_code == 0 and done.stderr == "", done.output
    return json.loads(done.stdout)


def refusal(*arguments: object) -> str:
    done = run(*arguments, "The cat")
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.output
    return done.stderr


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "bundles").iterdir())


def process(code: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RRT_EDGE_HOME": str(home)}
    command = [sys.executable, "-P", "-c", code, "run", *map(str, arguments)]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_a_folder_is_exported_unshared_and_answers(source: Path, home: Path, tmp_path: Path) -> None:
    done = run(source, "The cat", "--max-tokens", 4, "--temperature", 0)
    assert done.exit_code == 0, done.output
    export(source, tmp_path / "bundle", loops=1)
    with Model.load(tmp_path / "bundle") as model:
        ids = model.encode_chat([{"role": "user", "content": "The cat"}])
        expected = model.generate(ids, Sampling(temperature=0, max_tokens=4)).text
    assert done.stdout == f"{expected}\n" and "Warning" not in done.stderr
    assert f"exporting {source}, in 4 bits" in done.stderr and f"rrt-edge rm {source.name}" in done.stderr
    assert Manifest.read(home / "bundles" / source.name).architecture.loops == 1


def test_the_same_content_is_found_wherever_it_lies(
    source: Path, home: Path, exports: list[Any], tmp_path: Path
) -> None:
    first = reply(source)
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    assert reply(source)["tokens"] == reply(moved)["tokens"] == first["tokens"]
    assert len(exports) == 1 and names(home) == [source.name]


def test_a_later_start_needs_no_torch(source: Path, home: Path) -> None:
    line = (source, "The cat", "--max-tokens", "4", "--temperature", "0", "--json")
    without = process(WITHOUT + MAIN, home, *line)
    assert without.returncode == 2 and "pip install 'rrt-edge[export]'" in without.stderr, without.stderr
    assert without.stderr.count("\n") == 1 and not (home / "bundles").exists()
    first = reply(source)
    later = process(WITHOUT + MAIN, home, *line)
    assert later.returncode == 0 and json.loads(later.stdout)["tokens"] == first["tokens"], later.stderr


def test_a_changed_source_is_exported_anew_in_the_place_of_what_it_was(
    source: Path, home: Path, exports: list[Any], tmp_path: Path
) -> None:
    changing = Path(shutil.copytree(source, tmp_path / "changing"))
    reply(changing)
    fields = json.loads((changing / "config.json").read_text("utf-8"))
    (changing / "config.json").write_text(json.dumps({**fields, "rms_norm_eps": 0.5}), "utf-8")
    reply(changing)
    reply(changing)
    assert len(exports) == 2 and names(home) == ["changing"]


def test_other_options_are_another_bundle(source: Path, home: Path, exports: list[Any]) -> None:
    for options in ((), ("--bits", 8), ("--kv-bits", 8), ("--bits", 4), ("--bits", 8)):
        reply(source, *options)
    assert len(exports) == 3 and names(home) == [source.name, f"{source.name}-bits-8", f"{source.name}-kv-bits-8"]
    assert Manifest.read(home / "bundles" / f"{source.name}-bits-8").quantization.bits == 8


def test_a_bundle_of_that_name_is_left_alone(source: Path, bundle: Path, home: Path) -> None:
    assert CliRunner().invoke(main, ["pull", str(bundle), "--name", source.name]).exit_code == 0
    before = Manifest.read(home / "bundles" / source.name)
    reply(source)
    assert names(home) == [source.name, f"{source.name}-2"]
    assert Manifest.read(home / "bundles" / source.name) == before
    assert reply(source.name)["tokens"] and len(names(home)) == 2  # a bundle, which is run as it is


def test_list_says_where_it_is_from_and_rm_removes_it(source: Path, home: Path) -> None:
    reply(source)
    (listed,) = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)["bundles"]
    assert listed["source"] == str(source) and listed["problem"] is None
    table = CliRunner().invoke(main, ["list"], env={"COLUMNS": "400"}).stdout
    assert "exported from" in table and str(source) in table
    assert CliRunner().invoke(main, ["rm", source.name, "--yes"]).exit_code == 0
    assert names(home) == []


def test_a_damaged_bundle_is_not_taken(source: Path, home: Path, exports: list[Any]) -> None:
    first = reply(source)
    (home / "bundles" / source.name / "model.onnx").write_bytes(b"")
    assert reply(source)["tokens"] == first["tokens"] and len(exports) == 2 and names(home) == [source.name]


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4), ("Q4_K", 4), ("F16", 4)])
def test_blocks_that_bundles_have_too_are_kept(kind: str, bits: int, home: Path, tmp_path: Path) -> None:
    write_gguf(random_model("qwen2", **WIDE), tmp_path / "small.gguf", kind)
    assert reply(tmp_path / "small.gguf")["tokens"]
    export(tmp_path / "small.gguf", tmp_path / "bundle", loops=1, bits="source" if kind in ("Q8_0", "Q4_0") else 4)
    data = (home / "bundles" / "small" / "model.onnx.data").read_bytes()
    assert data == (tmp_path / "bundle" / "model.onnx.data").read_bytes()
    assert Manifest.read(home / "bundles" / "small").quantization.parts["block"] == bits


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (("--loops", 3), "rrt-edge convert {source} recursive --loops 3, then rrt-edge train recursive trained"),
        (("--loops", 3, "--rank", 2), "recursive --loops 3 --rank 2, then"),
        (("--rank", 2), "with --loops 1 nothing is shared"),
    ],
)
def test_what_needs_training_is_told_and_done(
    source: Path, home: Path, options: tuple[object, ...], warning: str
) -> None:
    for _ in range(2):  # found again, it is as untrained
        done = run(source, "The cat", "--max-tokens", 2, *options)
        assert done.exit_code == 0 and warning.format(source=source) in done.stderr, done.output
    (name,) = names(home)
    loops = 3 if "--loops" in options else 1
    assert Manifest.read(home / "bundles" / name).architecture.loops == loops


def test_a_recursive_checkpoint_keeps_its_loops(recursive: Path, home: Path) -> None:
    done = run(recursive, "The cat", "--max-tokens", 2)
    assert done.exit_code == 0 and "its exit gate is not trained" in done.stderr, done.output
    assert Manifest.read(home / "bundles" / recursive.name).architecture.loops == 3
    assert "is recursive already; --loops was chosen where it was converted" in refusal(recursive, "--loops", 1)


def test_without_a_chat_template_it_goes_on_from_the_text(source: Path, home: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(source, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template.jinja")))
    done = run(plain, "--max-tokens", 4, "--temperature", 0, text="The cat\n")
    assert done.exit_code == 0 and "plain has no chat template: it goes on from your text" in done.stderr
    with Model.load(home / "bundles" / "plain") as model:
        assert done.stdout == model.generate("The cat", Sampling(temperature=0, max_tokens=4)).text + "\n"


def test_a_system_message_comes_first(bundle: Path) -> None:
    answer = run(bundle, "The cat", "--system", "Be brief.", "--max-tokens", 4, "--temperature", 0, "--json")
    with Model.load(bundle) as model:
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The cat"}]
        assert json.loads(answer.stdout)["prompt_tokens"] == len(model.encode_chat(chat))


def test_a_model_of_the_hubs_cache(source: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = tmp_path / "hub" / "models--me--tiny", "0" * 40
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    answer = reply("me/tiny")
    assert names(home) == ["tiny"] and answer["tokens"]
    (listed,) = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)["bundles"]
    assert listed["source"] == "me/tiny"
    assert "me/other: no such folder, and not to be had from the Hugging Face hub" in refusal("me/other")


def test_what_is_no_source_is_one_line(source: Path, bundle: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Not a model.")
    shutil.make_archive(str(tmp_path / "packed"), "zip", bundle)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "some.gguf").touch()
    assert "is a file but no GGUF" in refusal(tmp_path / "text.txt")
    assert "install the bundle in it with rrt-edge pull" in refusal(tmp_path / "packed.zip")
    assert "none.gguf: no such file" in refusal(tmp_path / "none.gguf")
    assert "no such bundle folder" in refusal(tmp_path / "none")
    assert "name a file in it, such as some.gguf" in refusal(tmp_path / "files")
    assert "is a bundle; --bits can be chosen only where one is exported" in refusal(bundle, "--bits", 8)
    assert "loops 5 does not divide the 12 layers" in refusal(source, "--loops", 5)
    assert "bits source keeps the blocks of a GGUF file" in refusal(source, "--bits", "source")
    empty = run(source, text="")
    assert empty.exit_code == 2 and "no prompt; give it as an argument, or on standard input" in empty.stderr
    assert not home.exists()


def test_a_source_that_is_gone_names_what_was_made_of_it(source: Path, home: Path, tmp_path: Path) -> None:
    gone = Path(shutil.copytree(source, tmp_path / "gone"))
    reply(gone)
    shutil.rmtree(gone)
    assert "what was exported from it is there: rrt-edge run gone" in refusal(gone)
    assert reply("gone")["tokens"]


def test_a_source_that_is_written_to_meanwhile_is_not_kept(
    source: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = Path(shutil.copytree(source, tmp_path / "changing"))

    def meddle(*arguments: Any, **options: Any) -> Any:
        report = export(*arguments, **options)
        (changing / "config.json").touch()
        return report

    monkeypatch.setattr(rrt_edge.exporters, "export", meddle)
    done = run(changing, "The cat")
    assert done.exit_code == 1 and "was written to while it was exported; run it again" in done.stderr
    assert not (home / "bundles").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_leaves_nothing(source: Path, home: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RRT_EDGE_HOME": str(home)}
    command = [sys.executable, "-P", "-c", WAITING + MAIN, "run", str(source), "The cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == "exporting\n"
        assert list((home / "bundles").iterdir())  # it is under way
        running.send_signal(signal.SIGINT)
        output = running.stderr.read()
    assert running.returncode == 130
    assert output.endswith("error: interrupted; nothing half written was left behind\n")
    assert not (home / "bundles").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a full disk is simulated with a small tmpfs")
def test_a_full_disk_is_one_line_and_leaves_nothing(source: Path, home: Path) -> None:
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(home)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        done = run(source, "The cat", "--json")
        assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
        place = home / "bundles" / source.name
        assert f"{place}: the disk is full; nothing was left behind" in json.loads(done.stderr)["error"]["message"]
        assert not (home / "bundles").exists()
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_completion_offers_gguf_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").touch()
    words = {"_RRT_EDGE_COMPLETE": "bash_complete", "COMP_WORDS": "rrt-edge run ti", "COMP_CWORD": "2"}
    code = "from rrt_edge.cli import main; main(prog_name='rrt-edge')"
    environment = {**os.environ, **words, "RRT_EDGE_HOME": str(home)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,tiny.gguf"]


@pytest.mark.parametrize("chats", [True, False])
@needs_terminal
def test_in_a_terminal_it_is_a_conversation(chats: bool, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("pexpect")
    template = () if chats else ("chat_template.jinja",)
    folder = Path(shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns(*template)))
    command = [sys.executable, "-P", "-c", MAIN, "run", str(folder), "--plain", "--max-tokens", "4", "--temperature"]
    terminal = Terminal([*command, "0"], tmp_path, 40)
    try:
        terminal.prompt(1)
        terminal.type("The cat\r")
        lines = terminal.prompt(2)
        terminal.type("\x04")
        assert terminal.end() == 0
    finally:
        terminal.child.close(force=True)
    with Model.load(tmp_path / "home" / "bundles" / "model") as model:
        ids = model.encode_chat([{"role": "user", "content": "The cat"}]) if chats else model.encode("The cat")
        expected = visible(model.generate(ids, Sampling(temperature=0, max_tokens=4)).text)
    assert expected.strip() in "\n".join(lines)
    assert ("model has no chat template" in "\n".join(lines)) != chats
