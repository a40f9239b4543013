"""The chat with a pipe for input, and the files that keep conversations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.cli.chat.file import load_chat, save_chat
from rrt_edge.runtime import BadInputError, Model, Sampling
from tests.manifests import edit_manifest
from tests.program import refused, run

MAIN = "from rrt_edge.cli import main; main()"
POLICY = "threshold=0.5"


def chat(bundle: Path, given: str | bytes, *options: object, main: str = MAIN) -> subprocess.CompletedProcess[str]:
    """Run the chat with a pipe for input."""
    command = [sys.executable, "-P", "-c", main, "chat", str(bundle), "--exit-policy", POLICY, *map(str, options)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    content = given.encode() if isinstance(given, str) else given
    done = subprocess.run(command, input=content, capture_output=True, env=environment)
    out, error = (stream.decode().replace("\r\n", "\n") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, error)


def conversation(bundle: Path, questions: list[str], **sampling: Any) -> list[str]:
    """What the model answers to some messages of one conversation, each time without anything kept."""
    messages: list[dict[str, str]] = []
    with Model.load(bundle) as model:
        for question in questions:
            messages.append({"role": "user", "content": question})
            reply = "".join(token.text for token in model.chat(messages, Sampling(**sampling), POLICY))
            messages.append({"role": "assistant", "content": reply})
    return [message["content"] for message in messages[1::2]]


def test_a_pipe_gets_the_replies_and_nothing_else(bundle: Path) -> None:
    replies = conversation(bundle, ["The cat", "The dog", "The fox"], max_tokens=6)
    done = chat(bundle, "The cat\n\nThe dog\n  The fox  ", "--max-tokens", 6)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{reply}\n" for reply in replies)


def test_undo_and_retry_change_what_the_model_sees(bundle: Path) -> None:
    first, second = conversation(bundle, ["The cat", "The fox"], max_tokens=6)
    done = chat(bundle, "The cat\nThe dog\n/undo\n/retry\nThe fox\n/reset\nThe cat\n", "--max-tokens", 6)
    said = conversation(bundle, ["The cat", "The dog"], max_tokens=6)
    assert done.stdout == "".join(f"{reply}\n" for reply in (*said, first, second, first))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_retry_samples_with_another_seed(bundle: Path) -> None:
    options = ("--max-tokens", 12, "--temperature", 1.0, "--seed", 7)
    lines = [chat(bundle, "The cat\n/retry\n/retry\n/undo\nThe cat\n", *options).stdout for _ in range(2)]
    seeds = [conversation(bundle, ["The cat"], max_tokens=12, temperature=1.0, seed=seed)[0] for seed in (7, 8, 9)]
    assert len(set(seeds)) == 3
    assert lines == ["".join(f"{reply}\n" for reply in (*seeds, seeds[0]))] * 2


def test_commands_answer_in_a_pipe(bundle: Path) -> None:
    done = chat(bundle, "The cat\n/depth 1\n/stats\n/full\n/policy lossless\n/stats\n/help\n/exit\nnever read\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "depth=1" in done.stdout and "lossless" in done.stdout and "block rows per token" in done.stdout
    assert "/threshold [T]" in done.stdout and "never read" not in done.stdout
    assert not any(notice in done.stdout for notice in ("exit policy full", "Ctrl-D", "\x1b"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("/unod", "/unod is not a command; did you mean /undo?"),
        ("/xyzzy 1", "/xyzzy is not a command; /help lists them"),
        ("/depth 9", "exit policy 'depth=9': the depth must be from 1 to 3"),
        ("/depth", "/depth: write /depth N"),
        ("/threshold 2", "the threshold must be from 0 to 1"),
        ("/threshold", "this bundle has no calibrated threshold"),
        ("/policy often", "exit policy 'often': must be full"),
        ("/full now", "/full: write /full"),
        ("/depth-view maybe", "write /depth-view on or /depth-view off"),
        ("/undo", "there is no message yet"),
        ("/retry", "there is no message yet"),
        ("/stats", "generated in this session yet"),
        ("/copy", "there is no reply yet"),
        ("/load {folder}/none", "{folder}/none: cannot be read (No such file or directory)"),
        ("/save {folder}/none/chat", "{folder}/none/chat: cannot be written (No such file or directory)"),
    ],
)
def test_a_wrong_command_is_one_line_on_standard_error(bundle: Path, tmp_path: Path, line: str, message: str) -> None:
    done = chat(bundle, line.format(folder=tmp_path) + "\nThe cat\n", "--max-tokens", 3)
    assert done.returncode == 2 and done.stdout.count("\n") == 1, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message.format(folder=tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_context_says_what_to_do_and_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    given = f"The cat\n{'hen ' * 40}\n/save {saved}\nThe dog\n"
    done = chat(bundle, given, "--max-tokens", 3, "--context", 40)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the context holds 40" in done.stderr and "/undo" in done.stderr and "/reset" in done.stderr
    replies = conversation(bundle, ["The cat", "The dog"], max_tokens=3)
    assert done.stdout == "".join(f"{reply}\n" for reply in replies)
    assert [message["content"] for message in load_chat(saved)] == ["The cat", replies[0]]
    alone = chat(bundle, "hen " * 400, "--context", 40)
    assert "shorten it" in alone.stderr and "/undo" not in alone.stderr


def test_a_conversation_goes_on_from_a_file(bundle: Path, tmp_path: Path) -> None:
    replies = conversation(bundle, ["The cat", "The dog"], max_tokens=6)
    saved = tmp_path / "a chat.json"
    assert chat(bundle, f"The cat\n/save {saved}\n", "--max-tokens", 6).returncode == 0
    assert json.loads(saved.read_text("utf-8")) == {
        "format": "rrt-edge chat",
        "version": 1,
        "messages": [{"role": "user", "content": "The cat"}, {"role": "assistant", "content": replies[0]}],
    }
    done = chat(bundle, f"Hello\n/load {saved}\nThe dog\n", "--max-tokens", 6)
    assert done.stdout.endswith(f"\n{replies[1]}\n") and done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a chat.json"]


def test_a_system_message_leads_the_conversation(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    chat(bundle, f"The cat\n/system Be brief\n/save {saved}\n", "--max-tokens", 3, "--system", "Be kind")
    roles = [(message["role"], message["content"]) for message in load_chat(saved)]
    assert roles[0] == ("system", "Be brief") and [role for role, _ in roles] == ["system", "user", "assistant"]


def test_a_template_may_refuse_a_message(bundle: Path, tmp_path: Path) -> None:
    picky = Path(shutil.copytree(bundle, tmp_path / "picky"))
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    replace_template(picky, refusing + "{{ m.content }}{% endfor %}")
    done = chat(picky, "/system Be brief\nThe cat\n", "--max-tokens", 3)
    assert done.returncode == 2 and "no system" in done.stderr and done.stdout.count("\n") == 1


def test_variables_of_the_template_may_be_given(bundle: Path, tmp_path: Path) -> None:
    """`generate` and `chat` pass them on; what is no object of JSON is refused."""
    wordy = Path(shutil.copytree(bundle, tmp_path / "wordy"))
    refusing = "{% if not loud %}{{ raise_exception('too quiet') }}{% endif %}"
    replace_template(wordy, refusing + "{% for m in messages %}{{ m.content }}{% endfor %}")
    loud = ("--chat-template-kwargs", '{"loud": true}')
    assert "too quiet" in chat(wordy, "The cat\n", "--max-tokens", 3).stderr
    spoken = chat(wordy, "/system Be brief\nThe cat\n", "--max-tokens", 3, *loud)
    assert spoken.returncode == 0 and spoken.stdout.count("\n") == 1
    assert "too quiet" in refused("generate", wordy, "The cat", "--max-tokens", 3)
    assert run("generate", wordy, "The cat", "--max-tokens", 3, *loud).stdout
    for wrong, complaint in (("{", "not valid JSON"), ("[]", "must be a JSON object")):
        assert complaint in refused("generate", wordy, "Hi", "--chat-template-kwargs", wrong)


def replace_template(bundle: Path, template: str | None) -> None:
    (bundle / "chat_template.jinja").unlink()
    config = json.loads((bundle / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    content = json.dumps({**config, **({"chat_template": template} if template else {})}).encode()
    (bundle / "tokenizer_config.json").write_bytes(content)
    import hashlib

    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def replace(fields: dict[str, Any]) -> None:
        del fields["files"]["chat_template.jinja"]
        fields["files"]["tokenizer_config.json"] = entry

    edit_manifest(bundle, replace)


def test_a_bundle_without_a_template_is_one_line(bundle: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(bundle, tmp_path / "silent"))
    replace_template(silent, None)
    done = chat(silent, "The cat\n")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "has no chat template" in done.stderr and "--raw" in done.stderr


def test_depths_stand_behind_tokens_in_a_pipe(bundle: Path) -> None:
    done = chat(
        bundle, "The cat\n/depth-view off\nThe cat\n", "--max-tokens", 6, "--show-depth", "--exit-policy", "depth=2"
    )
    shaded, bare = done.stdout.splitlines()
    assert "²" in shaded and "²" not in bare


def test_bytes_that_are_no_text_are_refused(bundle: Path) -> None:
    done = chat(bundle, b"caf\xe9\n", "--max-tokens", 3)
    assert done.returncode == 2 and "not valid UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_pipe_does_not_need_the_line_editor(bundle: Path) -> None:
    done = chat(
        bundle, "The cat\n", "--max-tokens", 3, main=f"import sys; sys.modules['prompt_toolkit'] = None; {MAIN}"
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[1]", '"format" is not "rrt-edge chat"'),
        ('{"format": "rrt-edge chat", "version": 2, "messages": []}', "version 2"),
        ('{"format": "rrt-edge chat", "version": 1, "messages": {}}', '"messages" must be a list'),
        ('{"format": "rrt-edge chat", "version": 1, "messages": [{"role": "user"}]}', "message 1 must be an object"),
        (
            '{"format": "rrt-edge chat", "version": 1, "messages": [{"role": "dog", "content": ""}]}',
            "message 1: role 'dog' must be one of system, user, assistant",
        ),
    ],
)
def test_a_file_that_is_no_chat_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(BadInputError) as caught:
        load_chat(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    with pytest.raises(BadInputError, match="exists and is not a saved chat"):
        save_chat(path, [])
    assert path.read_text() == content


def test_a_saved_chat_may_be_replaced(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "日本\n\x07"}]
    save_chat(tmp_path / "chat", [])
    save_chat(tmp_path / "chat", messages)
    assert load_chat(tmp_path / "chat") == messages
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
