"""Hidden states on their way through the depths: on the host, or on a device that keeps them in its own memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import OrtValue

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a tensor [1, held, H] on a device."""

    tensor: OrtValue
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class DeviceRows:
    """Hidden states [n, H] that stay on a device: rows of its tensors, one behind the other, put together when run."""

    ndim = 2

    def __init__(self, download: Callable[[OrtValue], NDArray[Any]], width: int, pieces: Sequence[Piece] = ()) -> None:
        """
        Args:
            download: copies a tensor of the device to the host.
            width: numbers of a row, H.
        """
        self._download, self.width, self.pieces = download, width, tuple(piece for piece in pieces if len(piece))

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def __getitem__(self, rows: slice) -> DeviceRows:
        start, stop, _ = rows.indices(len(self))
        taken, before = [], 0
        for piece in self.pieces:
            first, last = max(start - before, 0), min(stop - before, len(piece))
            if first < last:
                taken.append(Piece(piece.tensor, piece.start + first, piece.start + last))
            before += len(piece)
        return self.of(taken)

    def of(self, pieces: Sequence[Piece]) -> DeviceRows:
        """Other rows of the same device."""
        return DeviceRows(self._download, self.width, pieces)

    def numpy(self) -> Float:
        """A copy on the host."""
        copies = [self._download(piece.tensor)[0, piece.start : piece.stop] for piece in self.pieces]
        copies.append(np.zeros((0, self.width), np.float32))
        joined: Float = np.concatenate(copies).astype(np.float32)
        return joined


Hidden = Union[Float, DeviceRows]  # noqa: UP007  an alias that Python 3.11 evaluates


def joined(*parts: Hidden) -> Hidden:
    """Rows one behind the other; all of one kind."""
    device = [part for part in parts if isinstance(part, DeviceRows)]
    if device:
        assert len(device) == len(parts)
        return device[0].of([piece for part in device for piece in part.pieces])
    return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


def on_host(rows: NDArray[Any] | DeviceRows) -> NDArray[Any]:
    """Rows as an array, copied from a device where they are there."""
    return rows.numpy() if isinstance(rows, DeviceRows) else rows
