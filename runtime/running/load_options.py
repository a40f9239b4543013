"""`LoadOptions`: how a bundle is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.kv_rule_names import LoadRule
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.devices.providers import DEVICES, VARIABLE
from rrt_edge.runtime.system.options import check_options, option

MOST_TOKENS = (1 << 31) - 1
MOST_THREADS = 1024
MOST_BYTES = (1 << 62) - 1


def _mebibytes(count: Any) -> int:
    return int(count) << 20


@dataclass(frozen=True)
class LoadOptions:
    """How a bundle is loaded; `Model.load` explains the fields.

    Raises:
        BadInputError: a value is out of range; names the option.
    """

    context: int | None = option(
        None,
        "Tokens a conversation may hold.",
        least=1,
        most=MOST_TOKENS,
        unset="4096, or the model's own limit where that is less",
    )
    threads: int | None = option(
        None,
        "How many threads onnxruntime computes with.",
        least=1,
        most=MOST_THREADS,
        unset="one for each physical core that the process may use, within a container's quota",
    )
    weight_cache: Path | None = option(
        None, "Keep the weights packed for this machine in this folder, mapped from there."
    )
    device: str | None = option(
        None,
        f"What to run on (rrt-edge devices); auto: what was fastest in a trial, made once. Also in {VARIABLE}.",
        choices=DEVICES,
        envvar=VARIABLE,
        unset="auto",
    )
    kv_budget_bytes: int | None = option(
        None, "MiB that keys and values may take.", least=1, most=MOST_BYTES, parse=_mebibytes, flag="kv-budget",
        metavar="MIB", unset="what there is",
    )  # fmt: skip
    kv_rule: LoadRule | None = option(
        None,
        "Run under another KV rule than the bundle was trained for; last: the last loop's keys and values for all "
        "loops; auto: that where those of a whole context would take more than half of the free memory. For the CPU.",
        unset="the bundle's own",
    )
    mmap: bool = option(
        True,
        "Map the weights from their file; --no-mmap reads them, for files that others may cut or overwrite meanwhile. "
        "For the CPU.",
    )
    reproducible: bool = option(
        False,
        "A reply depends on its prompt and options alone, to the last bit: requests share no step, and lossless drafts "
        "nothing. For the CPU.",
    )

    def __post_init__(self) -> None:
        """
        Raises:
            BadInputError: a value is not allowed, or does not go with another; names the option.
        """
        check_options(self)
        if self.weight_cache is not None and not self.mmap:
            raise BadInputError("no-mmap: does not go with weight-cache, which is there to be mapped")
