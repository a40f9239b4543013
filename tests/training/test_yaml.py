"""Files of training options that say odd things: one sentence that names the file or the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import read_options
from rrt_edge.training.options import TrainOptions, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = {
    "nested": ("[" * 50_000, "not valid YAML"),
    "date": ("lr: 2024-13-45", "not valid YAML"),
    "nan": ("epochs: .nan", "epochs nan"),
    "infinite": ("lr: .inf", "lr inf"),
    "text": ("lr: fast", "lr: 'fast' is not of the type float"),
    "list": ("- lr", "must hold options"),
    "number": ("7: 8", "7: no such option"),
    "day": ("lr: 2024-11-05", "lr: "),
    "unhashable": ("? [1]\n: 2", "not valid YAML"),
    "bytes": ("lr: !!binary aGVsbG8=", "lr: "),
    "object": ("lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "names": (BOMB.replace("i: &i", "epochs: &i"), "."),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    text, message = ODD[case]
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message) as caught:
        read_options(TrainOptions, read_yaml(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
