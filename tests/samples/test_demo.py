"""The demo that ships: its recipe repeats, its weights are there once, its bundle is proved and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rrt_edge.exporters import export, verify
from rrt_edge.runtime import Manifest, Model
from rrt_edge.runtime.decoding.exit_policy import POINTS
from rrt_edge.runtime.scoring.bundle_scores import read_examples, score_bundle
from rrt_edge.runtime.scoring.calibration import binomial_tail

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"
PYDOC = SAMPLES / "pydoc"
QUESTIONS = {
    "What does os.path.join do?": "Join two or more pathname components, inserting '/' as needed.",
    "In one line, what is collections.Counter?": "Dict subclass for counting hashable items.",
    "Remind me, what does heapq.heappush do?": "Push item onto heap, maintaining the heap invariant.",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pydoc")
    subprocess.run(
        [sys.executable, "-P", str(PYDOC / "recipe.py"), str(out), "--rounds", "1"], check=True, capture_output=True
    )
    return out


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `rrt-edge export BUNDLE` makes."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    export(PYDOC / "recursive", bundle)
    return bundle


def test_the_recipe_repeats_and_holds_whole_phrasings_out(data: Path, tmp_path: Path) -> None:
    again = [sys.executable, "-P", str(PYDOC / "recipe.py"), str(tmp_path), "--rounds", "1"]
    subprocess.run(again, check=True, capture_output=True)
    names = (PYDOC / "names.txt").read_text().split()
    assert names == sorted(set(names)) and len(names) > 3000

    def phrasings(name: str) -> set[str]:
        text = (data / name).read_text()
        assert text == (tmp_path / name).read_text()
        chats = [json.loads(line)["messages"] for line in text.splitlines()]
        questions = [message["content"] for chat in chats for message in chat if message["role"] == "user"]
        known = set(names)
        shapes = set()
        for question in questions:
            words = [word.rstrip("?!.,") for word in question.split()]
            found = [word for word in words if word in known]
            shapes.add(question.replace(max(found, key=len), "{}", 1) if found else question)
        return shapes

    train, held_out, calibrate = map(phrasings, ("train.jsonl", "heldout.jsonl", "calibrate.jsonl"))
    assert len(train) > 1000 and len(held_out) > 100
    assert not held_out & train and not calibrate & train and not held_out & calibrate


def test_chats_have_as_many_turns_as_are_asked_for(data: Path, tmp_path: Path) -> None:
    longer = [sys.executable, "-P", str(PYDOC / "recipe.py"), str(tmp_path), "--rounds", "1", "--turns", "6"]
    subprocess.run(longer, check=True, capture_output=True)
    for folder, most in ((data, 3), (tmp_path, 6)):
        chats = [json.loads(line)["messages"] for line in (folder / "train.jsonl").read_text().splitlines()]
        assert {len(chat) // 2 for chat in chats} == set(range(1, most + 1))


def test_the_weights_are_small_and_there_once() -> None:
    weights = list(SAMPLES.rglob("*.safetensors")) + list(SAMPLES.rglob("*.pt")) + list(SAMPLES.rglob("*.bin"))
    assert sorted(path.relative_to(PYDOC).as_posix() for path in weights) == [
        "recursive/model.safetensors",
        "teacher/model.safetensors",
    ]
    assert sum(path.stat().st_size for path in weights) < 30e6


def test_the_demo_is_proved_at_four_bits(demo: Path, data: Path) -> None:
    report = verify(demo, source=PYDOC / "recursive", text=data / "heldout.jsonl")
    assert report.ok and report.positions >= 2000, report.problem
    assert Manifest.read(demo).verification is None  # under the strict tolerance


@pytest.mark.parametrize("policy", ["full", "threshold", *POINTS])
def test_the_demo_answers(demo: Path, policy: str) -> None:
    with Model.load(demo) as model:
        for question, answer in QUESTIONS.items():
            reply = model.generate(question, exit_policy=policy)
            assert reply.text == answer
            assert (reply.stats.mean_depth == 2) == (policy == "full")


@pytest.mark.parametrize("policy", ["full", "balanced"])
def test_the_sixth_question_of_a_chat_is_answered_as_the_first(demo: Path, data: Path, policy: str) -> None:
    questions = [json.loads(line)["messages"] for line in (data / "heldout.jsonl").read_text().splitlines()[:60]]
    right = [0] * 6
    with Model.load(demo, device="cpu") as model:
        for start in range(0, len(questions), 6):
            messages: list[dict[str, str]] = []
            for turn, (question, answer) in enumerate(questions[start : start + 6]):
                reply = model.generate([*messages, question], exit_policy=policy).text
                right[turn] += reply == answer["content"]
                messages += [question, {"role": "assistant", "content": reply}]
    assert min(right) >= 8, right  # of 10


def test_the_demos_operating_points_keep_their_promises(demo: Path, data: Path) -> None:
    """On questions in phrasings that they were not found on, with the confidence that `calibrate` states."""
    points = Manifest.read(demo).gate.points
    assert points.keys() == POINTS.keys() and points["fast"] <= points["balanced"] <= points["faithful"]
    with Model.load(demo, device="cpu") as model:
        scores = score_bundle(model._loaded.runner, read_examples(model, data / "heldout.jsonl", 512))
    for name, promised in POINTS.items():
        failures = round((1 - scores.at_threshold(points[name]).agreement) * scores.tokens)
        assert binomial_tail(failures, scores.tokens, 1 - promised) < 0.05, (name, failures)


@pytest.mark.parametrize(
    "script, given", [("quickstart.py", ""), ("embed/tokens.py", ""), ("chat.py", "What is collections.Counter?\n")]
)
def test_the_samples_run(demo: Path, script: str, given: str) -> None:
    arguments = [] if script == "quickstart.py" else [str(demo)]
    command = [sys.executable, "-P", str(SAMPLES / script), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    expected = {
        "quickstart.py": "verified against the checkpoint: True",
        "embed/tokens.py": "pathname",
        "chat.py": "Dict subclass",
    }
    assert expected[script] in done.stdout
