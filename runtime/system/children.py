"""Work whose time and memory nobody can foresee, done by a child process that can be ended.

The parent's side is `Children`: `ask` sends a question to a child, which a limit or `Asking.leave` ends. The child's
side is `answer_questions`, for a module whose `begin` makes of the setup what answers questions; refusals are its
`BadInputError`s. Both speak in lines of JSON over pipes.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError, from_outside, in_words

PATIENCE = 10.0  # times the limit of processor time that a question may take by the clock, on a busy machine
SETUP_SECONDS = 120.0  # for a child to begin, by the clock
NICENESS = 5  # of a child, so that it does not slow down what answers others
START = """
import sys
module, path = sys.argv[1], sys.argv[4:]
sys.path += [entry for entry in path if entry not in sys.path]
from rrt_edge.runtime.system.children import answer_questions
answer_questions(module)
"""
LEFT = "was left"
Answer = Callable[[Any], Any]


def can_start() -> bool:
    """Whether children can be started: a frozen program, or one that embeds Python, has no Python of its own."""
    executable = Path(sys.executable or "")
    is_python = re.match("python|pypy|graalpy", executable.name.lower()) is not None
    return is_python and executable.is_file() and not getattr(sys, "frozen", False)


class TooSlowError(BadInputError):
    """A question took more time than it may; `by_clock`: the machine may have been busy with something else."""

    def __init__(self, message: str, by_clock: bool) -> None:
        super().__init__(message)
        self.by_clock = by_clock


@dataclass(frozen=True)
class Limits:
    """What a question may take: seconds of processor time, and bytes of memory beyond what the child had before."""

    seconds: float
    memory_bytes: int


class Asking:
    """One question under way, which another thread may leave."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self.left = False

    def leave(self) -> None:
        """End the child that works on it; whoever waits for the answer gets an error."""
        with self._lock:
            self.left = True
            if self._child is not None:
                self._child.kill()

    def begin(self, child: _Child) -> None:
        with self._lock:
            self._child = child
            if self.left:
                child.kill()

    def end(self) -> None:
        with self._lock:
            self._child = None


class Children:
    """Child processes that answer questions, started when they are needed.

    A program that cannot start any answers its questions itself, without limits.
    """

    def __init__(self, module: str, setup: Any, limits: Limits, most: int) -> None:
        """
        Args:
            module: whose `begin` a child calls.
            setup: what each child is told first, as JSON has it.
            most: children at a time; further questions wait.
        """
        self._module, self._setup, self._limits = module, setup, limits
        self._room = threading.Condition()
        self._most = most
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False
        self._process_id = os.getpid()
        self._turn_here = threading.Lock()
        self._answer_here: Answer | None = None

    def start(self) -> None:
        """Start a child that will be needed soon, where none is idle; nothing waits for it.

        Raises:
            RRTEdgeError: it cannot be started.
        """
        with self._room:
            self._forget_parents()
            if can_start() and not (self._idle or self._closed or len(self._busy) == self._most):
                self._idle.append(_Child(self._module, self._setup, self._limits))

    def ask(self, question: Any, what: str, asking: Asking | None = None) -> Any:
        """The answer to a question; waits while all children are busy.

        Raises:
            TooSlowError: it took too much time.
            BadInputError: the child refused it, or it took too much memory; `what` names it.
            RRTEdgeError: no child can be started.
        """
        if not can_start():
            return self._answered_here(question, what)
        asking = asking or Asking()
        child = self._take(asking, what)
        try:
            asking.begin(child)
            return child.ask(question, what)
        finally:
            asking.end()
            with self._room:
                self._busy.discard(child)
                if child.alive and not self._closed:
                    self._idle.append(child)
                else:
                    child.finish()
                self._room.notify_all()

    def close(self) -> None:
        """End all children; questions under way get an error."""
        with self._room:
            self._closed = True
            for child in self._busy:
                child.kill()
            while self._idle:
                self._idle.pop().finish()
            self._room.notify_all()

    def _answered_here(self, question: Any, what: str) -> Any:
        with self._turn_here:
            try:
                if self._answer_here is None:
                    self._answer_here = _begin(self._module, self._setup)
                return self._answer_here(json.loads(json.dumps(question)))  # as a child gets it
            except BaseException as error:
                if isinstance(error, BadInputError) or from_outside(error):
                    raise
                raise BadInputError(f"{what}: {in_words(error)}") from error

    def _forget_parents(self) -> None:
        """After a fork: the pipes are its parent's."""
        if self._process_id != os.getpid():
            self._idle, self._busy, self._process_id = [], set(), os.getpid()

    def _take(self, asking: Asking, what: str) -> _Child:
        with self._room:
            self._forget_parents()
            while not (self._idle or len(self._busy) < self._most or asking.left or self._closed):
                self._room.wait(0.05)
            if asking.left or self._closed:
                raise BadInputError(f"{what}: {LEFT}")
            self._idle = [child for child in self._idle if child.alive]
            child = self._idle.pop() if self._idle else _Child(self._module, self._setup, self._limits)
            self._busy.add(child)
            return child


class _Child:
    """One process; a question at a time."""

    def __init__(self, module: str, setup: Any, limits: Limits) -> None:
        self._limits, self._overdue, self._ready = limits, False, False
        self._setup = setup
        numbers = str(limits.seconds), str(limits.memory_bytes)
        command = [sys.executable, "-P", "-c", START, module, *numbers, *(entry or os.curdir for entry in sys.path)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # on Windows
            )  # fmt: skip
        except OSError as error:
            raise RRTEdgeError(f"cannot start a process for bounded work ({in_words(error)})") from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()

    def finish(self) -> int:
        """Kill it and clear up behind it; returns how it ended."""
        self.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return code

    def ask(self, question: Any, what: str) -> Any:
        if not self._ready:
            self._exchange(self._setup, SETUP_SECONDS, what)
            self._ready = True
        return self._exchange(question, self._limits.seconds * PATIENCE, what)

    def _exchange(self, message: Any, seconds: float, what: str) -> Any:
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (TypeError, RecursionError) as error:  # before a byte was written
            raise BadInputError(f"{what}: {in_words(error)}") from error
        except (OSError, ValueError):  # a broken or closed pipe
            line = b""
        finally:
            timer.cancel()
            timer.join()
        if not line.endswith(b"\n"):
            raise self._failure(what)
        answer = json.loads(line)
        if "memory" in answer:
            raise BadInputError(f"{what}: {self._too_large()}")
        if "failure" in answer:
            raise BadInputError(f"{what}: {answer['failure']}")
        if "error" in answer:
            raise BadInputError(answer["error"])
        return answer["value"]

    def _end(self) -> None:
        self._overdue = True
        self.kill()

    def _failure(self, what: str) -> RRTEdgeError:
        """Why there is no answer."""
        code, limits = self.finish(), self._limits
        if self._overdue or -code in _TIME_SIGNALS:
            return TooSlowError(f"{what}: takes longer than the {limits.seconds:g} s that are allowed", self._overdue)
        if code == -9:
            return BadInputError(f"{what}: {LEFT}")
        if not self._ready:
            return RRTEdgeError(f"{what}: a process for bounded work does not begin ({sys.executable})")
        return BadInputError(f"{what}: {self._too_large()}, or cannot be worked on")

    def _too_large(self) -> str:
        return f"takes more than the {self._limits.memory_bytes >> 20} MiB of memory that are allowed"


_TIME_SIGNALS = {int(signal.SIGPROF)} if hasattr(signal, "SIGPROF") else set[int]()


def _begin(module: str, setup: Any) -> Answer:
    answer: Answer = importlib.import_module(module).begin(setup)
    return answer


def answer_questions(module: str) -> None:
    """Be a child."""
    seconds, memory_bytes = float(sys.argv[2]), int(sys.argv[3])
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(OSError, AttributeError):
        os.nice(NICENESS)
    try:
        answer = _begin(module, json.loads(questions.readline()))
    except BadInputError as error:
        _reply(answers, {"error": str(error)})
        return
    _reply(answers, {"value": None})
    _limit_memory(memory_bytes)
    for line in questions:
        _limit_time(seconds)
        try:
            message = {"value": answer(json.loads(line))}
        except MemoryError:
            message = {"memory": memory_bytes}
        except BadInputError as error:
            message = {"error": str(error)}
        except BaseException as error:  # a panic of a library in Rust is no `Exception`
            message = {"failure": in_words(error)}
        _reply(answers, message)


def _reply(answers: IO[bytes], message: Any) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


def _limit_memory(memory_bytes: int) -> None:
    """Let what is taken from now on be bounded, where the system can."""
    try:
        import resource

        import psutil

        size = psutil.Process().memory_info().vms + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        return


def _limit_time(seconds: float) -> None:
    """Let the processor time from now on be bounded, where the system can; the parent looks at the clock as well."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
