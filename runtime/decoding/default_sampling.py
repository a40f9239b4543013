"""A bundle's generation_config.json: how its makers want tokens to be chosen where a request does not say."""

from __future__ import annotations

from pathlib import Path

from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError, BundleError, one_line
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import shown

FILE = "generation_config.json"
FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def default_sampling(bundle: Path) -> Sampling:
    """Read a bundle's defaults as transformers' `generate` does: greedy where the file does not say `do_sample`.

    Raises:
        BundleError: the file is damaged, or a value out of range.
    """
    path = bundle / FILE
    if not path.is_file():
        return Sampling()
    try:
        config = parse_json(path.read_text("utf-8"))
        values = {name: config[name] for name in FIELDS if config.get(name) is not None}
        if not isinstance(config.get("do_sample"), bool | None):
            raise ValueError(f"do_sample {shown(config['do_sample'])}: must be true or false")
        if not config.get("do_sample"):
            return Sampling(repetition_penalty=values.get("repetition_penalty", 1.0))
        return Sampling(**{"temperature": 1.0, **values})
    except (OSError, ValueError, AttributeError, TypeError, BadInputError) as error:
        raise BundleError(f"{path}: cannot be used ({one_line(error)})") from error
