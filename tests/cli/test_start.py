"""The first second of a command: wrong arguments are refused before torch is imported, Ctrl-C ends it with one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PREBUILT, ROOT

PLAIN, RECURSIVE = (str(ROOT / "samples" / "pydoc" / name) for name in ("teacher", "recursive"))
WITHOUT = "import sys\nsys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'accelerate')))\n"
MAIN = "from rrt_edge.cli import main\nmain(prog_name='rrt-edge')\n"
PAUSING = """
import sys
class Pause:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            print("importing", flush=True)
            sys.stdin.readline()
sys.meta_path.insert(0, Pause())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (["export", "/nowhere", "out"], "/nowhere: no such folder"),
        (["export", PLAIN, "out", "--loops", "5"], "loops 5 does not divide the 12 layers"),
        (["export", RECURSIVE, "taken"], "taken: exists and is not a bundle"),
        (["export", RECURSIVE, "out", "--bits", "8", "--eight-bit", "block"], "eight-bit parts go with bits 4"),
        (["convert", "/nowhere", "out"], "/nowhere: no such folder"),
        (["convert", RECURSIVE, "out"], "is recursive already"),
        (["convert", PLAIN, "taken"], "taken: exists and is not a recursive checkpoint"),
        (["convert", PLAIN, "out", "--loops", "0"], "loops 0 does not divide the 12 layers"),
        (["convert", PLAIN, "out", "--rank", "-1"], "rank -1 is negative"),
        (["convert", PLAIN, "out", "--kv-rank", "1.5"], "kv rank 1.5 is neither a whole number nor a share"),
        (["train", "/nowhere", "out", "--data", "taken/text.txt"], "/nowhere: no such folder"),
        (["train", PLAIN, "out", "--data", "taken/text.txt"], "not a recursive checkpoint"),
        (["train", RECURSIVE, "out", "--data", "none.jsonl"], "none.jsonl: no such data file"),
        (["train", RECURSIVE, "out", "--data", "taken/text.txt", "--teacher", "/nowhere"], "/nowhere: no such folder"),
        (["train", RECURSIVE, "out", "--data", "taken/text.txt", "--stages", "sleep"], "stages sleep: choose from"),
        (["train", RECURSIVE, "out", "--data", "hub:wikitext"], "say how far with --max-steps"),
        (["verify", str(PREBUILT), "--source", "/nowhere"], "/nowhere: no such folder"),
        (["verify", str(PREBUILT), "--source", RECURSIVE, "--text", "none.txt"], "none.txt: no such text file"),
        (["eval", RECURSIVE, "--data", "none.jsonl"], "none.jsonl: no such data file"),
        (["eval", PLAIN, "--data", "taken/text.txt"], "not a recursive checkpoint"),
        (["calibrate", str(PREBUILT), "--data", "none.jsonl"], "none.jsonl: no such data file"),
        (
            ["calibrate", str(PREBUILT), "--data", "taken/text.txt", "--confidence", "2"],
            "confidence 2.0: must be",
        ),
        (["bench", "--shape", "huge", "--random"], "shape 'huge': choose from tinyllama, smollm"),
        (["bench", "--shape", "smollm", "--random", "--loops", "7"], "loops 7 does not divide the 30 layers"),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "") if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_without_torch(line: list[str], refusal: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "text.txt").write_text("A text.", "utf-8")
    command = [sys.executable, "-P", "-c", WITHOUT + MAIN, *line]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and refusal in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_help_imports_no_command() -> None:
    code = "import sys\nfrom rrt_edge.cli import main\nmain(['--help'], standalone_mode=False)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    ours = {name for name in modules.split() if name.startswith("rrt_edge.cli")}
    assert ours == {"rrt_edge.cli", "rrt_edge.cli.group", "rrt_edge.cli.interrupts"}
    assert "numpy" not in modules.split() and "rich" not in modules.split()
    from rrt_edge.cli import main

    assert all(f"  {name} " in text for name in main.commands) and len(main.commands) == 18
    assert {command.name for command in main.commands.values()} == set(main.commands)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("click", ["generate", str(PREBUILT), "Hello"]),
        ("rrt_edge.cli.group", ["generate", str(PREBUILT), "Hello"]),
        ("rrt_edge.cli.generate", ["generate", str(PREBUILT), "Hello"]),
        ("rrt_edge.runtime.library.store", ["generate", str(PREBUILT), "Hello"]),
        ("onnxruntime", ["generate", str(PREBUILT), "Hello"]),
        ("torch", ["convert", PLAIN, "out"]),
        ("transformers", ["convert", PLAIN, "out"]),
        ("rrt_edge.conversion.conversion", ["export", PLAIN, "out"]),
    ],
)
def test_an_interrupt_while_importing_is_one_line(module: str, line: list[str], as_json: bool, tmp_path: Path) -> None:
    if line[0] != "generate":
        pytest.importorskip("tests.checkpoints")
    code = PAUSING.format(module=module) + MAIN
    command = [sys.executable, "-P", "-c", code, *line, *(["--json"] if as_json else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        output = process.stderr.read()
    assert process.returncode == 130 and output.count("\n") == 1 and not list(tmp_path.iterdir()), output
    message = json.loads(output)["error"]["message"] if as_json else output.removeprefix("error: ").strip()
    assert message == "interrupted; nothing half written was left behind"
