"""Installed bundles on the command line, run as a program: list, pull, rm, short names, completion."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROGRAM = "from rrt_edge.cli import main; main(prog_name='rrt-edge')"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Shell:
    """Runs rrt-edge with a home folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        settings = {"RRT_EDGE_HOME": str(self.home), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        self.environment = {**os.environ, **settings, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}

    def __call__(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *map(str, arguments)],
            env={**self.environment, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )

    def refused(self, *arguments: object, status: int = 2, **environment: str) -> str:
        """The one line of a command that must fail, the same as JSON."""
        done, as_json = (self(*arguments, *more, **environment) for more in ([], ["--json"]))
        assert done.returncode == as_json.returncode == status, done.stderr
        assert done.stdout == as_json.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        message = json.loads(as_json.stderr)["error"]["message"]
        assert done.stderr == f"error: {message}\n"
        return str(message)

    def completions(self, *words: str, last: str = "") -> list[tuple[str, str]]:
        """What click offers bash for a command line: kind and value."""
        line = " ".join(["rrt-edge", *words, last])
        found = self(_RRT_EDGE_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) + 1)).stdout
        return [(kind, value) for kind, _, value in (entry.partition(",") for entry in found.splitlines())]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_pull_list_and_rm(bundle: Path, shell: Shell) -> None:
    empty = shell("list")
    assert empty.returncode == 0 and f"no bundles in {shell.home / 'bundles'}" in empty.stdout
    assert json.loads(shell("list", "--json").stdout)["bundles"] == []
    pulled = json.loads(shell("pull", bundle, "--name", "tiny", "--json").stdout)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    assert pulled == {
        "name": "tiny", "folder": str(shell.home / "bundles" / "tiny"), "bytes": size, "family": "llama", "loops": 3,
        "bits": 32, "kv_rule": "exact", "gate_trained": False, "threshold": None, "problem": None,
    }  # fmt: skip
    assert json.loads(shell("list", "--json").stdout) == {"folder": str(shell.home / "bundles"), "bundles": [pulled]}
    row = next(line for line in shell("list").stdout.splitlines() if "tiny" in line)
    assert row.split()[3:] == ["llama", "3", "32", "not", "trained"]
    assert "tiny: installed already" in shell.refused("pull", bundle, "--name", "tiny")
    assert "try rrt-edge chat tiny" in shell("pull", bundle, "--name", "tiny", "--force").stdout
    assert "did you mean tiny?" in shell.refused("rm", "tini", "--yes")
    assert "say --yes" in shell.refused("rm", "tiny")
    assert json.loads(shell("rm", "tiny", "--yes", "--json").stdout) == {"removed": ["tiny"], "bytes": size}
    assert list((shell.home / "bundles").iterdir()) == []


def test_rm_asks_at_a_terminal(bundle: Path, shell: Shell) -> None:
    pexpect = pytest.importorskip("pexpect")
    if not hasattr(pexpect, "spawn"):
        pytest.skip("there are no pseudo-terminals here")
    shell("pull", bundle, "--name", "tiny")
    for answer, left in (("n", ["tiny"]), ("y", [])):
        terminal = pexpect.spawn(
            sys.executable, ["-P", "-c", PROGRAM, "rm", "tiny"], env=shell.environment, encoding="utf-8", timeout=None
        )
        terminal.expect_exact("Delete tiny (")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        assert [path.name for path in (shell.home / "bundles").iterdir()] == left


def test_every_command_takes_a_short_name(bundle: Path, shell: Shell) -> None:
    (shell.folder / "data.txt").write_text("The cat sees the hen. " * 30)
    shell("pull", bundle, "--name", "tiny")
    quick = ("--prompt", 6, "--new", 4, "--repeats", 1, "--tests", "decode:depth=1")
    for command in (
        ("verify", "tiny"), ("inspect", "tiny"), ("eval", "tiny", "--data", "data.txt"), ("bench", "tiny", *quick),
        ("calibrate", "tiny", "--data", "data.txt", "--agreement", "0.1", "--name", "mine"),
        ("generate", "tiny", "--prompt-ids", "20,30", "--max-tokens", 2), ("doctor", "tiny"),
    ):  # fmt: skip
        done = shell(*command, "--json")
        assert done.returncode == 0 and json.loads(done.stdout), done.stderr
        assert "did you mean tiny?" in shell.refused(command[0], "tinny", *command[2:])
    inspected = json.loads(shell("inspect", "tiny", "--json").stdout)
    assert "mine" in inspected["gate"]["points"]
    (shell.folder / "tiny").mkdir()
    assert "tiny: holds no manifest.json" in shell.refused("inspect", "tiny")


def test_export_writes_where_it_is_told_though_a_bundle_has_that_name(
    bundle: Path, recursive: Path, shell: Shell
) -> None:
    shell("pull", bundle, "--name", "tiny")
    assert shell("export", recursive, "tiny", "--bits", "8").returncode == 0
    assert json.loads((shell.folder / "tiny" / "manifest.json").read_text())["quantization"]["bits"] == 8
    assert json.loads(shell("list", "--json").stdout)["bundles"][0]["bits"] == 32


def test_ctrl_c_during_a_pull_keeps_what_came_for_the_next_one(bundle: Path, shell: Shell) -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for path in bundle.iterdir():
            archive.write(path, path.name)
    body, asked = held.getvalue(), []
    sha256, half = hashlib.sha256(body).hexdigest(), len(body) // 2
    partial = shell.home / "downloads" / f"{sha256}.partial"
    interrupt = signal.CTRL_C_EVENT if sys.platform == "win32" else signal.SIGINT
    processes: list[subprocess.Popen[str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.headers.get("Range"))
            start = int(str(asked[-1])[6:-1]) if asked[-1] else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if start:
                self.wfile.write(body[start:])
                return
            self.wfile.write(body[:half])
            while processes[0].poll() is None and not (partial.exists() and partial.stat().st_size == half):
                time.sleep(0.01)  # until it is on disk
            processes[0].send_signal(interrupt)
            self.connection.recv(1)  # until the program hangs up

    with serving(Handler) as address:
        command = ["pull", f"{address}/tiny.zip", "--sha256", sha256]
        flags = subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0
        program = [sys.executable, "-P", "-c", PROGRAM, *command]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(program, env=shell.environment, creationflags=flags, **pipes))
        output, error = processes[0].communicate()
        assert processes[0].returncode == 130 and output == ""
        assert error == "error: interrupted; nothing was installed, the same pull goes on from here\n"
        assert partial.stat().st_size == half and not (shell.home / "bundles").exists()
        assert "tiny:" in shell(*command).stdout
    assert asked == [None, f"bytes={half}-"] and list((shell.home / "downloads").iterdir()) == []


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that a download of a repository asks."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, Path] = {}  # noqa: RUF012  set by the test
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer_json(self, found: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(found).encode(), {"Content-Type": "application/json", **headers})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        for name, folder in self.repositories.items():
            files = [file for file in sorted(folder.iterdir()) if file.is_file()]
            if path.startswith(f"/api/models/{name}/tree/{COMMIT}"):
                return self.answer_json(
                    [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "0" * 40} for one in files]
                )
            if path in (f"/api/models/{name}", *(f"/api/models/{name}/revision/{at}" for at in ("main", "v1", COMMIT))):
                names = [{"rfilename": file.name} for file in files]
                return self.answer_json({"id": name, "sha": COMMIT, "siblings": names})
            if path.startswith(f"/api/models/{name}/"):
                return self.answer_json({}, 404, **{"X-Error-Code": "RevisionNotFound"})
            wanted = folder / path.rpartition("/")[2]
            if path.startswith(f"/{name}/resolve/") and not wanted.is_file():
                return self.answer_json({}, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            if path.startswith(f"/{name}/resolve/{COMMIT}/"):
                if self.command == "GET":
                    self.asked.append(wanted.name)
                body = wanted.read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                return self.answer(200, body, headers)
        return self.answer_json({}, 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


def test_a_repository_of_the_hub(bundle: Path, shell: Shell) -> None:
    published = Path(shutil.copytree(bundle, shell.folder / "published"))
    (published / "pickle.bin").write_bytes(b"not the bundle's")
    (shell.folder / "other").mkdir()
    (shell.folder / "other" / "config.json").write_text("{}")
    Hub.repositories, Hub.asked = {"me/tiny": published, "me/other": shell.folder / "other"}, []
    with serving(Hub) as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        done = shell("pull", "me/tiny", "--revision", "v1", "--json", **hub)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert json.loads(done.stdout)["name"] == "tiny" and json.loads(done.stdout)["problem"] is None
        assert sorted(Hub.asked) == sorted(path.name for path in bundle.iterdir())
        assert "no such repository" in shell.refused("pull", "me/none", **hub)
        assert "has no revision 'v9'" in shell.refused("pull", "me/tiny", "--name", "a", "--revision", "v9", **hub)
        assert "me/other: holds no manifest.json" in shell.refused("pull", "me/other", **hub)
        (published / "tokenizer.json").rename(published / "elsewhere")
        assert "me/tiny: holds no tokenizer.json" in shell.refused("pull", "me/tiny", "--name", "b", **hub)
        (published / "elsewhere").rename(published / "tokenizer.json")
        (published / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1] + b"\xff")
        assert "me/tiny/model.onnx: its SHA-256 is not" in shell.refused("pull", "me/tiny", "--name", "b", **hub)
    assert "the hub was not reached" in shell.refused("pull", "me/tiny", "--name", "c", status=1, **hub)
    assert json.loads(shell("generate", "tiny", "--prompt-ids", "20", "--json").stdout)["tokens"]
    assert [path.name for path in (shell.home / "bundles").iterdir()] == ["tiny"]
    assert list((shell.home / "downloads").iterdir()) == []


def test_offline_the_hubs_cache_is_all_there_is(bundle: Path, shell: Shell) -> None:
    message = shell.refused("pull", "me/tiny", status=1)
    assert "me/tiny: HF_HUB_OFFLINE is set, and the hub's cache does not hold it" in message
    Hub.repositories, Hub.asked = {"me/tiny": bundle}, []
    with serving(Hub) as address:
        code = "from huggingface_hub import snapshot_download; snapshot_download('me/tiny')"
        environment = {**shell.environment, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True, capture_output=True)
    assert "tiny:" in shell("pull", "me/tiny").stdout
    assert json.loads(shell("doctor", "tiny", "--json").stdout)["bundle"]["hashes_ok"]


def test_completion_offers_commands_options_names_and_folders(bundle: Path, shell: Shell) -> None:
    for name in ("tiny", "tall"):
        shell("pull", bundle, "--name", name)
    (shell.folder / "tower").mkdir()
    assert ("plain", "inspect") in shell.completions(last="ins")
    assert shell.completions("inspect", last="t") == [("plain", "tall"), ("plain", "tiny"), ("plain", "tower")]
    assert shell.completions("generate", last="ti") == [("plain", "tiny")]
    assert shell.completions("eval", last="zz") == [("dir", "zz")] == shell.completions("bench", last="zz")
    assert shell.completions("rm", last="") == [("plain", "tall"), ("plain", "tiny")]
    assert shell.completions("doctor", "tiny", last="--j") == [("plain", "--json")]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_shells_take_the_completion_script(name: str, shell: Shell) -> None:
    script = shell("completion", name)
    assert script.returncode == 0 and f"_RRT_EDGE_COMPLETE={name}_complete" in script.stdout
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not here")
    flags = {"bash": ["-n"], "zsh": ["-n"], "fish": ["--no-execute"]}[name]
    done = subprocess.run([program, *flags], input=script.stdout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bash_completes_installed_names(bundle: Path, shell: Shell) -> None:
    bash = shutil.which("bash")
    if bash is None or sys.platform == "win32":
        pytest.skip("bash is not here")
    shell("pull", bundle, "--name", "tiny")
    program = shell.folder / "rrt-edge"
    program.write_text(f'#!/bin/sh\nexec \'{sys.executable}\' -P -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    asked = """
eval "$(rrt-edge completion bash)"
COMP_WORDS=(rrt-edge inspect ti); COMP_CWORD=2
_rrt_edge_completion rrt-edge ti inspect
echo "${COMPREPLY[@]}"
"""
    environment = {**shell.environment, "PATH": f"{shell.folder}{os.pathsep}{os.environ['PATH']}"}
    version = subprocess.run([bash, "-c", "echo $BASH_VERSION"], capture_output=True, text=True).stdout
    if tuple(map(int, version.split(".")[:2])) < (4, 4):
        pytest.skip("click's script needs bash 4.4")
    done = subprocess.run([bash, "-c", asked], env=environment, cwd=shell.folder, capture_output=True, text=True)
    assert done.stdout == "tiny\n", done.stderr


def test_the_version_is_the_packages(shell: Shell) -> None:
    import rrt_edge

    assert shell("--version").stdout == f"rrt-edge, version {rrt_edge.__version__}\n"


def test_help_imports_neither_onnxruntime_nor_the_hub(shell: Shell) -> None:
    heavy = "{'onnxruntime', 'huggingface_hub', 'torch', 'transformers', 'tokenizers', 'urllib.request'}"
    code = "import sys\nfrom rrt_edge.cli import main\nmain(['--help'], standalone_mode=False)\n"
    code += f"sys.exit(str({heavy} & set(sys.modules) or 0) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=shell.environment)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in ("list", "pull", "rm", "doctor", "completion"))
