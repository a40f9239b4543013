"""What a server must bear: keys, limits, full queues, clients that go away, its own end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.server.protocol import read_chat, read_completion
from rrt_edge.runtime.server.server_options import ServerOptions
from tests.manifests import replace_file

PROMPT = [20, 30, 40]
ENDLESS = {"prompt": PROMPT, "max_tokens": 60_000, "stream": True}
LONG = ("--context", "65536", "--max-tokens", "60000", "--kv-budget", "20000")


@pytest.fixture(scope="module")
def running(serve, endless: Path):
    return serve(endless, *LONG)


def read_events(lines) -> list[dict]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def suppressed(url: str, body: dict) -> None:
    """A request whose server will be killed."""
    with suppress(httpx.HTTPError):
        httpx.post(url, json=body, timeout=300)


def until(condition) -> None:
    """Poll: what is waited for comes about in another process."""
    while not condition():
        pass


def test_a_client_that_goes_away_ends_its_request(running) -> None:
    """Streaming or not, with several choices too; as a process that is killed closes its sockets."""
    host, port = running.url.removeprefix("http://").split(":")
    for body in (ENDLESS, {**ENDLESS, "n": 3}, {**ENDLESS, "stream": False}):
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            until(lambda: running.metric("rrt_edge_requests_running ") >= 1)
        until(lambda: running.metric("rrt_edge_requests_running ") == 0)
        ended = running.metric("rrt_edge_request_seconds_count")
        assert ended == 0  # none of them came to its end
    assert running.metric("rrt_edge_requests_waiting ") == 0
    assert (
        running.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3}).json()["usage"]["completion_tokens"] == 3
    )


def test_a_full_queue_says_when_to_come_again(serve, endless: Path) -> None:
    # A budget of keys and values for one request: a second one waits, a third is one too many.
    served = serve(endless, *LONG, "--max-queue", "1", "--kv-budget", "250")
    with httpx.stream("POST", f"{served.url}/v1/completions", json=ENDLESS, timeout=300) as first:
        lines = first.iter_lines()  # held: a response whose lines are dropped is closed
        next(lines)
        second = {"prompt": PROMPT, "max_tokens": 30_000}
        waiting = threading.Thread(target=suppressed, args=(f"{served.url}/v1/completions", second))
        waiting.start()
        until(lambda: served.metric("rrt_edge_requests_waiting ") == 1)
        refused = served.post("/v1/completions", ENDLESS)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert served.metric('rrt_edge_requests_total{path="/v1/completions",status="429"}') == 1
        served.process.kill()
        waiting.join()
    too_large = serve(endless, "--kv-budget", "1").post("/v1/completions", {**ENDLESS, "max_tokens": 400})
    assert too_large.status_code == 400 and "over the budget" in too_large.json()["error"]["message"]


def test_a_key_guards_all_but_health(serve, endless: Path) -> None:
    served = serve(endless, RRT_EDGE_API_KEY="sesame")
    assert served.get("/health").json() == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
        for path in ("/v1/models", "/metrics"):
            refused = served.get(path, headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    key = {"Authorization": "Bearer sesame"}
    assert served.get("/v1/models", headers=key).status_code == 200
    assert served.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2}, headers=key).status_code == 200


def test_other_origins_and_names_are_kept_out(serve, endless: Path) -> None:
    served = serve(endless, "--cors", "https://friend.example")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for origin, allowed in (("https://friend.example", True), ("https://stranger.example", False)):
        response = httpx.options(f"{served.url}/v1/completions", headers={"Origin": origin, **asked})
        assert (response.headers.get("access-control-allow-origin") == origin) is allowed
    rebound = served.get("/v1/models", headers={"Host": "stranger.example"})
    assert rebound.status_code == 400
    simple = httpx.post(f"{served.url}/v1/completions", content=json.dumps({"prompt": PROMPT}))
    assert simple.status_code == 415  # what a page may send unasked is no request


def test_bodies_are_bounded_and_must_be_json(running) -> None:
    headers = {"content-type": "application/json"}
    url = f"{running.url}/v1/completions"
    assert httpx.post(url, content=b"[" * 2_000_000, headers=headers).status_code == 413
    for content in (b"{", b"[" * 100_000, b"\xff", b""):
        response = httpx.post(url, content=content, headers=headers)
        assert response.status_code == 400 and "not valid JSON" in response.json()["error"]["message"]
    assert (
        httpx.post(url, content=b"[1]", headers=headers).json()["error"]["message"] == "the body must be a JSON object"
    )
    assert running.get("/v1/nothing").status_code == 404 and running.get("/v1/completions").status_code == 405


def test_replies_are_cut_to_the_servers_limit(serve, endless: Path) -> None:
    served = serve(endless, "--max-tokens", "7", "--name", "small")
    for body in ({"prompt": PROMPT, "max_tokens": 100}, {"prompt": PROMPT, "max_tokens": None}):
        answer = served.post("/v1/completions", {**body, "model": "small"}).json()
        assert answer["usage"]["completion_tokens"] == 7 and answer["choices"][0]["finish_reason"] == "length"


def options(most_tokens: int, default_tokens: int = 1024) -> ServerOptions:
    return ServerOptions("here", most_tokens=most_tokens, default_tokens=default_tokens)


def test_what_a_request_leaves_open_is_as_the_bundle_says(endless: Path, tmp_path: Path) -> None:
    config = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.4, "repetition_penalty": 1.2}
    more = {"do_sample": True, "stop_strings": ["#"], "max_new_tokens": 30, "min_new_tokens": 20}
    folder = Path(shutil.copytree(endless, tmp_path / "bundle"))
    replace_file(folder, "generation_config.json", json.dumps({**config, **more}).encode())
    own = Sampling(**config, stop=("#",), max_tokens=30, min_tokens=20)
    with Model.load(folder) as model:
        for fields, most_tokens, changes in (
            ({}, 4096, {}),
            ({"min_p": 0.2, "stop": ["x", "y"]}, 4096, {"min_p": 0.2, "stop": ("x", "y")}),
            ({"max_tokens": 25, "seed": 3}, 4096, {"max_tokens": 25, "seed": 3}),
            ({"max_tokens": 9, "stop": []}, 4096, {"max_tokens": 9, "min_tokens": 9, "stop": ()}),
            ({"max_tokens": None}, 9, {"max_tokens": 9, "min_tokens": 9}),
            ({"max_tokens": None}, 4096, {}),
            ({"max_tokens": 100}, 9, {"max_tokens": 9, "min_tokens": 9}),
        ):
            ask = read_completion({"prompt": [2], **fields}, model, options(most_tokens))
            assert ask.sampling == replace(own, **changes)
        messages = [{"role": "user", "content": "Hi"}]
        assert read_chat({"messages": messages}, model, options(4096)).sampling == own
    with Model.load(endless) as model:
        for fields, most in (({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": 7}, 7)):
            assert read_completion({"prompt": [2], **fields}, model, options(4096)).sampling == Sampling(
                max_tokens=most
            )
        for most, default in ((4096, 1024), (99, 99)):
            assert read_chat({"messages": messages}, model, options(most)).sampling == Sampling(max_tokens=default)
        assert read_chat({"messages": messages}, model, options(4096, 50)).sampling == Sampling(max_tokens=50)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_server_that_is_told_to_end_finishes_its_replies(serve, endless: Path) -> None:
    served = serve(endless, "--grace", "3600")
    asked = {**ENDLESS, "max_tokens": 500}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=asked, timeout=300) as response:
        lines = response.iter_lines()
        first = next(lines)
        served.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    events = read_events([first, *rest])
    assert events[-1]["choices"][0]["finish_reason"] == "length" and rest[-2:] == ["data: [DONE]", ""]
    assert len(events) > 100
    assert served.process.wait() == 0
    assert served.process.stderr.read().count("\n") == 1  # that it ends


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_a_second_interrupt_ends_it_at_once(serve, endless: Path) -> None:
    served = serve(endless, *LONG)
    with httpx.stream("POST", f"{served.url}/v1/completions", json=ENDLESS, timeout=300) as response:
        lines = response.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGINT)
        assert "Ctrl-C again" in served.process.stderr.readline()
        served.process.send_signal(signal.SIGINT)
        served.process.wait()
        assert served.process.returncode == 0 and served.process.stderr.read() == ""


def test_metrics_count_tokens_depths_and_times(serve, demo: Path) -> None:
    served = serve(demo)
    question = [{"role": "user", "content": "What does os.path.join do?"}]
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for policy in ("full", "depth=1", "depth=1"):
        answer = served.post("/v1/chat/completions", {"messages": question, "exit_policy": policy}).json()
        for name in usage:
            usage[name] += answer["usage"][name]
    assert served.metric("rrt_edge_generated_tokens_total") == usage["completion_tokens"]
    assert served.metric("rrt_edge_prompt_tokens_total") == usage["prompt_tokens"]
    shallow = served.metric('rrt_edge_generated_tokens_total{depth="1"}')
    deep = served.metric('rrt_edge_generated_tokens_total{depth="2"}')
    assert served.metric("rrt_edge_mean_depth ") == pytest.approx((shallow + 2 * deep) / (shallow + deep))
    drafted, accepted = served.metric("rrt_edge_drafted_tokens_total"), served.metric("rrt_edge_accepted_drafts_total")
    rejected = drafted - accepted  # each was a row at depth 1; those from the text, at depth 2 too where they got there
    of_text = served.metric("rrt_edge_text_drafted_tokens_total") - served.metric("rrt_edge_text_accepted_drafts_total")
    dropped = served.metric("rrt_edge_block_rows_total") - (shallow + 2 * deep + rejected)  # whole rows
    assert 0 <= dropped <= of_text
    assert served.metric("rrt_edge_time_to_first_token_seconds_count") == 3
    assert served.metric("rrt_edge_time_per_token_seconds_count") == usage["completion_tokens"] - 3
    assert served.metric("rrt_edge_request_seconds_count") == 3


def test_options_that_cannot_be_are_one_line(endless: Path, running) -> None:
    from click.testing import CliRunner

    from rrt_edge.cli import main

    taken = running.url.rpartition(":")[2]
    for arguments, line in (
        (("--port", taken), "cannot listen there"),
        (("--port", "99999"), "port 99999: must be from 0 to 65535"),
        (("--exit-policy", "depth=7"), "exit policy 'depth=7'"),
        (("--max-queue", "0"), "most-waiting 0"),
    ):
        result = CliRunner().invoke(main, ["serve", str(endless), "--port", "0", *arguments])
        assert result.exit_code == 2 and line in result.output and "Traceback" not in result.output
