"""A server beside honest, leaving, slow and hostile clients for a while: nobody honest may lose anything.

    python benchmarks/soak.py BUNDLE [--requests 3000] [--clients 64] [--minutes 30] [--seed 0]

Each client draws what it is for each request: honest ones (half) want a reply, whole or streamed, and compare it with
the one that the same request got when nothing else ran, for which the server is `--reproducible`; leaving ones close
the connection somewhere; slow ones send a byte now and then, or do not read; hostile ones send what must be refused.
The soak ends after so many requests or minutes. Lost: honest requests without an answer; foreign: with an error or
another text; stuck: no byte for 120 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

STUCK = 120.0  # seconds without a byte
SLOW = {"type": "string", "allOf": [{"pattern": f"a.{{{count}}}b"} for count in range(10, 60)]}
HOSTILE: list[dict[str, Any]] = [
    {"temperature": 10**400}, {"repetition_penalty": 10**400}, {"max_tokens": -1}, {"prompt": "word " * 200_000},
    {"prompt": [1 << 40]}, {"logit_bias": {"1": 10**400}}, {"exit_policy": "depth=99"}, {"regex": "("},
    {"grammar": "start: start\n"}, {"stop": ["x" * 10**5]}, {"prompt": []}, {"seed": -1},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "slow", "schema": SLOW}}},
]  # fmt: skip


@contextmanager
def serving(bundle: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port: its process and address."""
    command = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", "serve", bundle, "--port", "0"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().partition("serving at ")[2].split("/v1")[0]
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Tally:
    """What became of the requests."""

    count: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of honest requests
    memory: list[tuple[int, int]] = field(default_factory=list)  # bytes and descriptors, after each third
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Soak:
    """One run against the server at `host` and `port`."""

    host: str
    port: int
    process: psutil.Process
    expected: dict[int, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def honest_body(self, number: int, stream: bool) -> dict[str, Any]:
        """One of 20 requests."""
        chosen = random.Random(number)
        return {
            "prompt": [chosen.randrange(5, 200) for _ in range(chosen.randrange(1, 40))], "stream": stream,
            "max_tokens": chosen.randrange(1, 40), "temperature": chosen.choice([0, 0.8]), "seed": number,
        }  # fmt: skip

    async def client(self, left: list[int], until: float, draws: random.Random) -> None:
        """Requests one after another while there are any left."""
        while left and time.monotonic() < until:
            left.pop()
            kind = draws.choices(["honest", "leaving", "slow", "hostile"], [50, 25, 5, 20])[0]
            self.tally.count[kind] += 1
            try:
                await getattr(self, kind)(draws)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                if kind == "honest":
                    self.tally.count["stuck" if isinstance(error, TimeoutError) else "lost"] += 1
                    self.tally.errors[f"{type(error).__name__}: {error}"[:80]] += 1

    async def honest(self, draws: random.Random) -> None:
        number, stream, started = draws.randrange(20), draws.random() < 0.5, time.monotonic()
        status, text = await self.ask(self.honest_body(number, stream))
        while status in (429, 503):  # as a client that is told to come again does
            self.tally.count["asked again"] += 1
            await asyncio.sleep(1)
            status, text = await self.ask(self.honest_body(number, stream))
        self.tally.seconds.append(time.monotonic() - started)
        if status != 200 or text != self.expected[number]:
            self.tally.count["foreign"] += 1
            self.tally.errors[f"{status}: {text}"[:80]] += 1

    async def leaving(self, draws: random.Random) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            body = {**self.honest_body(draws.randrange(20), draws.random() < 0.5), "max_tokens": 200}
            content = request(body)
            writer.write(content[: draws.choice([10, len(content) // 2, len(content)])])
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(draws.choice([1, 500])), draws.random())
        finally:
            writer.transport.abort()

    async def slow(self, draws: random.Random) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            for byte in request(self.honest_body(0, False))[: draws.randrange(5, 40)]:
                writer.write(bytes([byte]))
                await asyncio.sleep(draws.random())
            await asyncio.wait_for(reader.read(1), 60)  # that it is told to go, or its answer
        finally:
            writer.transport.abort()

    async def hostile(self, draws: random.Random) -> None:
        chosen = draws.choice(HOSTILE)
        status, _ = await self.ask({"prompt": [5, 6], "max_tokens": 3, **chosen})
        if status not in (400, 429, 503):
            self.tally.count["hostile let through"] += 1
            self.tally.errors[f"{status}: {json.dumps(chosen)}"[:80]] += 1

    async def ask(self, body: dict[str, Any]) -> tuple[int, str]:
        """Status and text of an answer."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(request(body))
            await writer.drain()
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), STUCK)).decode().lower()
            content = bytearray()
            while piece := await asyncio.wait_for(reader.read(1 << 16), STUCK):
                content += piece
        finally:
            writer.transport.abort()
        status = int(head.split()[1])
        if status != 200:
            return status, content.decode(errors="replace")
        if not body["stream"]:
            return status, json.loads(content)["choices"][0]["text"]
        events = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
        if events[-1:] != ["[DONE]"]:
            raise ValueError("the stream broke off")
        return status, "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])

    async def run(self, requests: int, clients: int, minutes: float, seed: int) -> None:
        for number in range(20):
            _, self.expected[number] = await self.ask(self.honest_body(number, False))
        left, until = list(range(requests)), time.monotonic() + 60 * minutes
        tasks = [asyncio.create_task(self.client(left, until, random.Random(f"{seed} {at}"))) for at in range(clients)]
        for third in (1, 2, 3):
            while len(left) > requests * (3 - third) // 3 and not all(task.done() for task in tasks):
                await asyncio.sleep(0.2)
            if third == 3:
                await asyncio.gather(*tasks)
                await asyncio.sleep(1)
            self.tally.memory.append((self.process.memory_info().rss, self.process.num_fds()))


def request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = ["POST /v1/completions HTTP/1.0", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


def table(tally: Tally, before: tuple[int, int], after: int | None) -> str:
    """The result, as Markdown."""

    def at(share: float, seconds: Sequence[float]) -> str:
        return f"{sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]:.2f} s" if seconds else "-"

    count, seconds = tally.count, tally.seconds
    rows = [
        ("requests: honest, leaving, slow, hostile",
         ", ".join(str(count[kind]) for kind in ("honest", "leaving", "slow", "hostile"))),
        ("honest ones lost, stuck, with a foreign error or text",
         f"{count['lost']}, {count['stuck']}, {count['foreign']}"),
        ("hostile ones let through", str(count["hostile let through"])),
        ("asked again after 429 or 503", str(count["asked again"])),
        ("honest latency: median, 95 %, longest",
         f"{statistics.median(seconds) if seconds else 0:.2f} s, {at(0.95, seconds)}, {at(1, seconds)}"),
        ("memory: before, after each third", ", ".join(f"{rss >> 20} MiB" for rss, _ in [before, *tally.memory])),
        ("descriptors: before, after each third", ", ".join(str(files) for _, files in [before, *tally.memory])),
        ("exit status after SIGTERM", str(after)),
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([*lines, *(f"error, {times} times: {error}" for error, times in tally.errors.most_common(5))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # writing to a server that refuses to read on is part of it
    # To the last bit: else a reply's text may be another where rounding decides between two tokens.
    with serving(arguments.bundle, "--reproducible") as (process, url):
        host, _, port = url.removeprefix("http://").partition(":")
        watched = psutil.Process(process.pid)
        soak = Soak(host, int(port), watched)
        before = watched.memory_info().rss, watched.num_fds()
        asyncio.run(soak.run(arguments.requests, arguments.clients, arguments.minutes, arguments.seed))
    print(table(soak.tally, before, process.returncode))
    failed = any(soak.tally.count[kind] for kind in ("lost", "stuck", "foreign", "hostile let through"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
