"""How long a running stream stands still while the server reads the largest bodies that it takes.

    python benchmarks/server_gaps.py BUNDLE [--repeats 3] [--context 65536]

A stream runs alone for a while, then beside each kind of body, all but 1 MiB long, one after another. The longest time
between two of its chunks is what the event loop, the engine and the machine together make a client wait. It needs a
bundle whose replies go on for long: random weights do.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator

import httpx
from soak import serving

SIZE = (1 << 20) - 1000  # bytes
JSON = {"content-type": "application/json"}


def bodies() -> Iterator[tuple[str, str, str]]:
    """What a body is, its path and the body."""
    words = "word " * (SIZE // 5 - 50)
    for name, path, body in (
        ("words", "/v1/completions", {"prompt": words}),
        ("words of a conversation", "/v1/chat/completions", {"messages": [{"role": "user", "content": words}]}),
        ("short messages", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * (SIZE // 40)}),
        ("token ids", "/v1/completions", {"prompt": [[*[5] * (SIZE // 50), -1]] * 16}),
        ("biases", "/v1/completions", {"prompt": [5], "logit_bias": {str(at): 1 for at in range(SIZE // 14)}}),
        ("a schema", "/v1/completions", {
            "prompt": [5], "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [words]}}},
        }),
        ("nested lists", "/v1/completions", {"prompt": [[]] * (SIZE // 4)}),
    ):  # fmt: skip
        yield name, path, json.dumps(body)


def longest_gap(lines: Iterator[str], done: threading.Event) -> float:
    """The longest time between two chunks until `done` is set."""
    longest, latest = 0.0, time.perf_counter()
    for line in lines:
        if line.startswith("data: "):
            now = time.perf_counter()
            longest, latest = max(longest, now - latest), now
            if done.is_set():
                break
    return longest


def ask(client: httpx.Client, path: str, body: str, repeats: int, answers: list[int], done: threading.Event) -> None:
    for _ in range(repeats):
        answers.append(client.post(path, content=body, headers=JSON).status_code)
    done.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, default=65536)
    arguments = parser.parse_args()
    tokens = arguments.context - 10
    options = ("--context", str(arguments.context), "--max-tokens", str(tokens), "--kv-budget", "20000")
    with serving(arguments.bundle, *options) as (_, url), httpx.Client(base_url=url, timeout=300) as client:
        stream = {"prompt": [5, 6, 7], "max_tokens": tokens, "stream": True}
        print("| beside | answered with | longest gap of the stream |\n|---|---|---|")
        with client.stream("POST", "/v1/completions", json=stream) as response:
            lines = response.iter_lines()
            quiet = threading.Event()
            threading.Timer(3.0, quiet.set).start()
            print(f"| nothing | | {longest_gap(lines, quiet):.3f} s |")
            for name, path, body in bodies():
                done, answers = threading.Event(), list[int]()

                def ask(
                    path: str = path, body: str = body, done: threading.Event = done, answers: list = answers
                ) -> None:
                    for _ in range(arguments.repeats):
                        answers.append(client.post(path, content=body, headers=JSON).status_code)
                    done.set()

                asking = threading.Thread(target=ask)
                asking.start()
                gap = longest_gap(lines, done)
                asking.join()
                print(f"| {name} | {answers[0] if answers else ''} | {gap:.3f} s |", flush=True)


if __name__ == "__main__":
    main()
