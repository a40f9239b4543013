"""GGUF files with changed headers: each is refused, or a checkpoint whose tensors can be read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.gguf_header import read_header
from rrt_edge.runtime import BadInputError
from tests.families import random_model
from tests.fuzz.budget import cases
from tests.fuzz.refusals import check_message
from tests.gguf_files import write_gguf

NUMBERS = (0, 1, 2, 7, 8, 9, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)

READ = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A file that may be changed, its content, and where its header ends."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    write_gguf(random_model(request.param, num_hidden_layers=2), path, pieces=request.param == "gemma3")
    return path, path.read_bytes(), min(tensor.offset for tensor in read_header(path).tensors.values())


@cases(100)
@given(data=st.data())
def test_a_changed_header_is_refused_or_that_of_a_checkpoint(
    file: tuple[Path, bytes, int], data: st.DataObject
) -> None:
    path, content, header = file
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header - 1))
        size = data.draw(st.sampled_from((1, 4, 8)))
        number = data.draw(st.sampled_from(NUMBERS) | st.integers(0, (1 << 64) - 1))
        changed[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    end = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    path.write_bytes(changed[:end])
    try:
        with closing(Checkpoint(path)) as checkpoint:
            for name in READ:
                checkpoint.tensor(name)
            assert (checkpoint.folder / "tokenizer.json").is_file()
    except BadInputError as error:
        check_message(str(error), path)
