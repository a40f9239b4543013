"""The samples that embed a model, run as they are: threads, an asyncio service, a window that never blocks."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rrt_edge.runtime import Model, Sampling

FOLDER = Path(__file__).resolve().parent.parent.parent / "samples" / "embed"
QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, "-P", str(FOLDER / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tokens_tell_their_depths(demo: Path) -> None:
    text = run("tokens", demo)
    with Model.load(demo) as model:
        answer = "".join(token.text for token in model.chat(QUESTION, exit_policy="threshold"))
    assert text.startswith(answer) and "left after loop 1" in text and "block rows a token" in text


def test_a_folder_of_docstrings_is_summarised_in_order(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('def f():\n    """Add two numbers."""\n\ndef g():\n    pass\n', "utf-8")
    (tmp_path / "two.py").write_text('async def h():\n    """Wait for the door."""\n', "utf-8")
    (tmp_path / "broken.py").write_text("def (", "utf-8")
    (tmp_path / "long.py").write_text(f'def long():\n    """{"word " * 3000}"""\n', "utf-8")
    lines = run("docstrings", demo, tmp_path, "--threads", "3").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["long.long", "one.f", "two.h"]
    alone = run("docstrings", demo, tmp_path, "--threads", "1").splitlines()
    assert lines == alone and all(len(line) > 15 for line in lines)


def test_the_service_streams_to_several_clients_and_ends_with_them(demo: Path, endless: Path) -> None:
    service = load("service")

    async def ask(port: int, line: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{line}\n".encode())
        answer = (await reader.readline()).decode().strip()
        writer.close()
        return answer

    async def demo_service() -> None:
        with Model.load(demo, threads=1) as model:
            server = await asyncio.start_server(service.Service(model).talk, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            answers = await asyncio.gather(*(ask(port, QUESTION[0]["content"]) for _ in range(4)))
            expected = "".join(token.text for token in model.chat(QUESTION, exit_policy="threshold"))
            assert answers == [expected] * 4
            server.close()

    async def hanging_up() -> None:
        with Model.load(endless, threads=1) as model:
            sessions = []
            make = model.session
            model.session = lambda: sessions.append(make()) or sessions[-1]  # type: ignore[method-assign,func-returns-value]
            server = await asyncio.start_server(service.Service(model).talk, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            writer.write(b"The cat\n")
            await reader.read(20)
            writer.transport.abort()
            while not sessions[0].finish_reason:
                await asyncio.sleep(0)
            assert sessions[0].finish_reason in ("cancelled", "length")
            server.close()

    asyncio.run(demo_service())
    asyncio.run(hanging_up())


def test_the_window_stays_awake_and_stops_on_escape(demo: Path, endless: Path) -> None:
    pytest.importorskip("textual")
    window = load("window")

    async def asks(bundle: Path, question: str, stop: bool, context: int | None = None) -> tuple[str, int]:
        ticks = 0
        with Model.load(bundle, threads=1, context=context) as model:
            app = window.Window(model)
            app.sampling = Sampling(max_tokens=10_000)
            tick = app.tick

            def counted() -> None:
                nonlocal ticks
                ticks += 1
                tick()

            app.tick = counted
            async with app.run_test() as pilot:
                app.query_one("#question").value = question
                await pilot.press("enter")
                if stop:
                    while ticks < 5:  # the clock goes on while the model talks
                        await pilot.pause(0.05)
                    await pilot.press("escape")
                await app.workers.wait_for_complete([one for one in app.workers if not one.is_cancelled])
                await pilot.pause()
                shown = str(app.query_one("#talk").children[1].render())
        return shown, ticks

    shown, _ = asyncio.run(asks(demo, QUESTION[0]["content"], stop=False))
    with Model.load(demo) as model:
        assert shown == "".join(token.text for token in model.chat(QUESTION, exit_policy="threshold"))
    shown, ticks = asyncio.run(asks(endless, "The cat", stop=True, context=20_000))
    assert "[stopped]" in shown and ticks >= 5
