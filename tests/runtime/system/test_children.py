"""Bounded work in child processes: answers, refusals, limits of time and memory, and questions that are left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.system.children import Asking, Children, Limits, can_start

CHILD = """
import os, sys
from rrt_edge.runtime.errors import BadInputError
class Panic(BaseException): pass
def begin(setup):
    if setup == "refuse":
        raise BadInputError("refused from the beginning")
    def answer(question):
        if question == "loop":
            while True: pass
        if question == "memory": return len(bytearray(1 << 33))
        if question == "abort": os.abort()
        if question == "panic": raise Panic("gone")
        if question == "refuse": raise BadInputError("refused")
        return [setup, question]
    return answer
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Children]]:
    (tmp_path / "answering_child.py").write_text(CHILD, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = []

    def start(setup: str = "begun", seconds: int = 1, most: int = 1) -> Children:
        made.append(Children("answering_child", setup, Limits(seconds, 128 << 20), most))
        return made[-1]

    yield start  # type: ignore[misc]
    for children in made:
        children.close()


@pytest.mark.slow
def test_questions_are_answered_and_what_fails_is_the_questions_fault(make) -> None:
    children = make()
    for question, message in (
        ("refuse", "^refused$"), ("panic", "^work: Panic: gone$"), ("memory", "^work: takes more than the 128 MiB"),
        ("abort", "^work: takes more than the 128 MiB of memory that are allowed, or cannot be worked on"),
        ("loop", "^work: takes longer than the 1 s that are allowed"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=message):
            children.ask(question, "work")
        assert children.ask({"a": [1, "é\ud800"]}, "work") == ["begun", {"a": [1, "é\ud800"]}]
    with pytest.raises(BadInputError, match=r"^work: TypeError"):
        children.ask(object(), "work")
    assert children.ask(1, "work") == ["begun", 1]
    with pytest.raises(BadInputError, match=r"^refused from the beginning$"):
        make("refuse").ask(1, "work")


@pytest.mark.slow
def test_a_child_that_is_started_early_answers_the_first_question(make) -> None:
    children, before = make(), psutil.Process().children()
    children.start()
    started = [child for child in psutil.Process().children() if child not in before]
    children.start()
    assert children.ask(1, "work") == ["begun", 1]
    assert [child for child in psutil.Process().children() if child not in before] == started
    children.close()
    children.start()
    assert psutil.Process().children() == before


def test_a_program_that_has_no_python_of_its_own_answers_itself(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("program", "python"):  # a frozen program's name may be anything, and its Python need not be there
        monkeypatch.setattr(sys, "executable", str(tmp_path / name))
        children, before = make(name), psutil.Process().children()
        children.start()
        assert children.ask({"a": (1, "é")}, "work") == [name, {"a": [1, "é"]}]
        for question, message in (("refuse", "^refused$"), ("panic", "^work: Panic: gone$")):
            with pytest.raises(BadInputError, match=message):
                children.ask(question, "work")
        with pytest.raises(BadInputError, match=r"^work: TypeError"):
            children.ask(object(), "work")
        assert psutil.Process().children() == before
    monkeypatch.undo()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not can_start()


@pytest.mark.slow
def test_a_child_finds_what_its_parent_finds_and_one_that_does_not_begin_is_no_fault_of_the_question(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(RRTEdgeError, match=r"^work: a process for bounded work does not begin") as caught:
        make().ask(1, "work")
    assert not isinstance(caught.value, BadInputError)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make().ask(1, "work") == ["begun", 1]


@pytest.mark.slow
def test_a_question_that_is_left_ends_with_its_child_and_so_does_one_that_waits(make) -> None:
    children, errors = make(seconds=10_000), []

    def ask(asking: Asking) -> None:
        with pytest.raises(BadInputError) as caught:
            children.ask("loop", "work", asking)
        errors.append(str(caught.value))

    askings = [Asking() for _ in range(3)]
    threads = [threading.Thread(target=ask, args=(asking,)) for asking in askings]
    for thread in threads:
        thread.start()
    mine = psutil.Process()
    while not mine.children():
        pass
    for asking in askings:
        asking.leave()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert children.ask(1, "work") == ["begun", 1]
    left = Asking()
    left.leave()
    with pytest.raises(BadInputError, match="was left"):
        children.ask(1, "work", left)


@pytest.mark.slow
def test_closing_ends_all_children(make) -> None:
    children = make(seconds=10_000)

    def ask() -> None:
        with pytest.raises(BadInputError):
            children.ask("loop", "work")

    asking = threading.Thread(target=ask)
    before = psutil.Process().children()
    asking.start()
    while psutil.Process().children() == before:
        pass
    children.close()
    asking.join()
    assert psutil.Process().children() == before
    with pytest.raises(BadInputError):
        children.ask(1, "work")
