"""The hash of a source's content: each byte that an export reads counts, and no file is read twice for nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rrt_edge.conversion import content
from rrt_edge.conversion.content import content_hash
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.files import sha256

TOOLS = "additional_chat_templates/tool_use.jinja"


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(source, tmp_path / "model"))
    (copied / "pytorch_model.bin").write_bytes(b"weights that nobody reads")
    (copied / "additional_chat_templates").mkdir()
    (copied / TOOLS).write_text("{{ tools }}")
    return copied


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read."""
    names: list[str] = []

    def watched(path: Path, *arguments: object) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(content, "sha256", watched)
    monkeypatch.setattr(content, "SETTLED", -1)  # as if the files were older
    return names


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", TOOLS])
def test_what_an_export_reads_counts(name: str, folder: Path, tmp_path: Path) -> None:
    before = content_hash(folder, tmp_path / "hashes.json")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + b"\n" + whole[-1:])  # which JSON allows before its last bracket
    assert content_hash(folder, tmp_path / "hashes.json") != before


def test_neither_place_nor_other_files_count(folder: Path, tmp_path: Path) -> None:
    before = content_hash(folder, tmp_path / "hashes.json")
    (folder / "pytorch_model.bin").write_bytes(b"others")
    assert content_hash(folder.rename(tmp_path / "elsewhere"), tmp_path / "hashes.json") == before


def test_a_file_is_its_own_hash(tmp_path: Path) -> None:
    for name in ("one.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"GGUF and so on")
    first, second = (content_hash(tmp_path / name, tmp_path / "hashes.json") for name in ("one.gguf", "other.gguf"))
    assert first == second


def test_a_file_is_read_again_only_where_it_was_touched(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    before = content_hash(folder, tmp_path / "hashes.json")
    assert "model.safetensors" in reads and "pytorch_model.bin" not in reads
    reads.clear()
    assert content_hash(folder, tmp_path / "hashes.json") == before and reads == []
    (folder / "config.json").touch()
    assert content_hash(folder, tmp_path / "hashes.json") == before and reads == ["config.json"]


def test_a_file_that_was_just_written_is_not_remembered(
    folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written again within the same tick of the clock."""
    monkeypatch.setattr(content, "SETTLED", 3600e9)
    for _ in range(2):
        reads.clear()
        content_hash(folder, tmp_path / "hashes.json")
        assert "model.safetensors" in reads


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"signature": []}}', "\x00"])
def test_a_damaged_memory_costs_a_reading(text: str, folder: Path, tmp_path: Path, reads: list[str]) -> None:
    before = content_hash(folder, tmp_path / "other.json")
    (tmp_path / "hashes.json").write_text(text)
    assert content_hash(folder, tmp_path / "hashes.json") == before
    reads.clear()
    assert content_hash(folder, tmp_path / "hashes.json") == before and reads == []


def test_megabytes_are_told(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    content_hash(folder, tmp_path / "hashes.json", lambda done, total, what: seen.append((done, total)))
    assert seen and all(done <= total for done, total in seen)


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"holds no model\.safetensors"):
        content_hash(folder, tmp_path / "hashes.json")
