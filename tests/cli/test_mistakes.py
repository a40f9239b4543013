"""What people mistype: exit policies nearly right, arguments in each other's place, names without their flag."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError, ExitPolicy
from rrt_edge.runtime.decoding.exit_policy import FORMS, POINTS, Exits
from tests.cli.test_library import PROGRAM, Shell
from tests.conftest import PREBUILT, ROOT
from tests.manifests import edit_manifest

RECURSIVE, TEACHER = (ROOT / "samples" / "pydoc" / name for name in ("recursive", "teacher"))
EXITS = Exits(3, 0.5, dict.fromkeys(POINTS, 0.9) | {"mine": 0.8})
WRITTEN = sorted({form.text.replace("=N", "=2").replace("=M", "=1.5").replace("=T", "=0.9") for form in FORMS})


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shutil.copytree(PREBUILT, tmp_path / "bundle")
    shutil.copytree(RECURSIVE, tmp_path / "recursive")
    (tmp_path / "data.txt").write_text("The cat sees the hen.\n" * 20)
    return Shell(tmp_path)


@pytest.mark.parametrize("text", [*WRITTEN, *EXITS.points])
def test_a_policy_with_a_letter_missing_or_another_sign_is_guessed(text: str) -> None:
    word, equals, number = text.partition("=")
    misspelt = [f"{word[:at]}{word[at + 1 :]}{equals}{number}" for at in range(1, len(word))]
    misspelt = [one for one in misspelt if one != text]  # of a double letter there is one left
    if equals:
        misspelt += [f"{word}:{number}", f"{word} {number}", text.upper(), f"{word}= {number} "]
    for wrong in misspelt:
        try:
            assert ExitPolicy.parse(wrong, EXITS) == ExitPolicy.parse(text, EXITS)  # blanks around a number
        except BadInputError as error:
            assert str(error).endswith(f"; did you mean {text}?"), (wrong, str(error))


@pytest.mark.parametrize(("text", "guess"), [("0.9", "threshold=0.9"), ("2", "depth=2"), ("depth", "depth=N")])
def test_a_number_alone_and_a_policy_without_its_number_are_guessed(text: str, guess: str) -> None:
    with pytest.raises(BadInputError, match=f"did you mean {guess}\\?$"):
        ExitPolicy.parse(text, EXITS)


@pytest.mark.parametrize("text", ["quite another thing", "", "=", "\N{SNOWMAN}", "x" * 5000, "7=7=7"])
def test_nothing_is_guessed_of_what_is_like_nothing(text: str) -> None:
    with pytest.raises(BadInputError) as error:
        ExitPolicy.parse(text, EXITS)
    assert "did you mean" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("point", POINTS)
def test_a_bundle_without_operating_points_says_how_they_are_found(point: str) -> None:
    with pytest.raises(BadInputError, match=f"'{point}': this bundle has no such operating point; rrt-edge calibrate"):
        ExitPolicy.parse(point, Exits(2, 0.5))
    with pytest.raises(BadInputError, match="has no exit gate"):
        ExitPolicy.parse(point, Exits(2, has_gate=False))
    with pytest.raises(
        BadInputError, match=r"no calibrated threshold; give threshold=T, or find one with rrt-edge cal"
    ):
        ExitPolicy.parse("threshold", Exits(2))


SWAPPED = {
    "generate": ("What is it?", "bundle"),
    "run": ("What is it?", "bundle"),
    "run a checkpoint": ("What is it?", "recursive"),
    "convert": ("out", str(TEACHER)),
    "export": ("out", "recursive"),
    "export over a bundle": ("bundle", "recursive"),
    "train": ("out", "recursive", "--data", "data.txt"),
    "verify": ("recursive", "--source", "bundle"),
    "eval": ("data.txt", "--data", "bundle"),
    "calibrate": ("data.txt", "--data", "bundle"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWAPPED)
def test_arguments_in_each_others_place_are_noticed(name: str, shell: Shell) -> None:
    """Every command that reads one thing and takes another beside it."""
    command = name.partition(" ")[0]
    before = sorted(shell.folder.rglob("*"))
    message = shell.refused(command, *SWAPPED[name])
    place = next(part for part in reversed(SWAPPED[name]) if part not in ("data.txt", "--data"))
    kind = {"bundle": "bundle", "recursive": "recursive checkpoint"}.get(place, "checkpoint")
    assert f"; {place} is a {kind}: are the two swapped? rrt-edge {command} " in message, message
    assert "make one with" not in message and "choose another name" not in message
    assert sorted(shell.folder.rglob("*")) == before


def test_right_arguments_with_another_fault_are_not_called_swapped(shell: Shell) -> None:
    assert "swapped" not in shell.refused("generate", "bundle", "bundle", "--exit-policy", "depth=7")
    assert "swapped" not in shell.refused("generate", "nowhere", "What is it?")
    assert "swapped" not in shell.refused("verify", "bundle", "--source", "nowhere")
    assert "swapped" not in shell.refused("convert", "someone/model", "recursive")  # a checkpoint to be replaced
    (shell.folder / "adapter").mkdir()
    assert "swapped" not in shell.refused("convert", "adapter", str(TEACHER))


@pytest.mark.parametrize(
    ("given", "status", "left"),
    [
        ("y\n", 0, []),
        ("YES\n", 0, []),
        ("n\n", 1, ["tiny"]),
        ("\n", 1, ["tiny"]),
        ("yeah\n", 1, ["tiny"]),
        ("", 2, ["tiny"]),
    ],
)
def test_rm_takes_the_answer_of_a_pipe(given: str, status: int, left: list[str], shell: Shell) -> None:
    assert shell("pull", "bundle", "--name", "tiny").returncode == 0
    command = [sys.executable, "-P", "-c", PROGRAM, "rm", "tiny"]
    done = subprocess.run(
        command, env=shell.environment, cwd=shell.folder, input=given, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == status, done.stderr
    assert sorted(path.name for path in shell.home.glob("bundles/*")) == left
    assert (done.stdout + done.stderr).count("\n") == 1
    if status == 1:
        assert done.stderr == "error: tiny: kept, as was answered\n"


def test_verify_says_damage_in_one_line_without_a_table(shell: Shell) -> None:
    sound = shell("verify", "bundle")
    assert sound.stdout == "bundle: ok, hashes ok, no source compared\n" and sound.stderr == ""
    with (shell.folder / "bundle" / "model.onnx").open("r+b") as file:
        file.write(b"\x00")
    damaged = shell("verify", "bundle")
    assert damaged.returncode == 1 and damaged.stdout == ""
    assert damaged.stderr.startswith("error: bundle/model.onnx: its SHA-256 is not") and damaged.stderr.count("\n") == 1
    edit_manifest(shell.folder / "bundle", lambda fields: fields["files"].pop("model.onnx"))
    assert json.loads(shell("verify", "bundle", "--json").stderr)["error"]["message"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("help", "COMMAND --help"), ("version", "--version"), ("ls", "list"), ("show", "inspect"), ("delete", "rm")],
)
def test_words_of_other_programs_are_told_ours(shell: Shell, word: str, meant: str) -> None:
    complaint = f"Error: No such command '{word}'; rrt-edge {meant} is what does it here.\n"
    done = shell(word, "bundle")
    assert done.returncode == 2 and done.stderr.endswith(complaint)
    assert "Did you mean 'verify'?" in shell("verfy", "bundle").stderr
