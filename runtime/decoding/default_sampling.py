"""A bundle's generation_config.json: how its makers want tokens to be chosen where a request does not say.

Its fields mean what they mean to transformers' `generate`. One that is odd counts as absent, a file that cannot be read
as empty: a warning names it, and whatever was to be done goes on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError, one_line
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import options_in, shown

FILE = "generation_config.json"
DRAWING = {"temperature": 1.0, "top_k": 50}  # what `generate` takes where the file says `do_sample` and not these
DRAWN = {  # fields of `Sampling`, by the file's names: they count where it says `do_sample`
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical_p",
}  # fmt: skip
ALWAYS = {
    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
}  # fmt: skip
FIELDS = frozenset({*DRAWN.values(), *ALWAYS.values()})  # those of `Sampling` that a file may say
NEUTRAL = {  # what `generate` does and we do not, with the value at which it does nothing
    "bad_words_ids": None, "begin_suppress_tokens": None, "constraints": None, "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "exponential_decay_length_penalty": None,
    "force_words_ids": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1,
    "max_time": None, "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "penalty_alpha": 0,
    "sequence_bias": None, "suppress_tokens": None, "token_healing": False, "watermarking_config": None,
}  # fmt: skip
NEUTRAL_DRAWN = {"epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}  # the same, of what counts where it draws
LONGEST_TOLD = 700  # characters of what is odd
REMEDY = "correct the file in the checkpoint and export it again, or say in each request what you want"
log = logging.getLogger(__name__)


def default_sampling(bundle: Path) -> dict[str, Any]:
    """The fields of `Sampling` that a bundle's makers chose, with their values: `Loaded.sampling` fills in the rest.

    Empty, which means greedy, where there is no file or it does not say `do_sample`; a repetition penalty, lengths and
    stop texts count there too.
    """
    path = bundle / FILE
    if not path.is_file():
        return {}
    try:
        config = parse_json(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s), so that tokens are the likeliest; %s", path, one_line(error), REMEDY)
        return {}
    odd: list[str] = []
    draws = config.get("do_sample")
    if not isinstance(draws, bool | None):
        odd.append(f"do_sample {shown(draws)} (must be true or false)")
        draws = False
    fields = dict(DRAWING) if draws else {}
    for name, field in {**(DRAWN if draws else {}), **ALWAYS}.items():
        _take(config, name, field, fields, odd)
    if "max_tokens" not in fields:
        _take(config, "max_length", "max_tokens", fields, odd)
        if "max_tokens" in fields:
            fields["max_length"] = fields["max_tokens"]
    missing = _missing(config, {**NEUTRAL, **(NEUTRAL_DRAWN if draws else {})})
    parts = [f"not used: {', '.join(odd)}"] if odd else []
    parts += [f"not supported, so that replies may differ from transformers': {', '.join(missing)}"] if missing else []
    if parts:
        log.warning("%s: %s; %s", path, one_line("; ".join(parts), LONGEST_TOLD), REMEDY)
    return fields


def _take(config: dict[str, Any], name: str, field: str, fields: dict[str, Any], odd: list[str]) -> None:
    """Enter what the file says under a name into the fields, or into what is odd."""
    value = config.get(name)
    if value is None:
        return
    understood = options_in(Sampling)[field]
    ours = _in_our_form(name, value)
    try:
        understood.check(ours)
    except BadInputError:
        odd.append(f"{name} {shown(value)} ({understood.allowed})")
        return
    fields[field] = understood.plain(ours)


def _in_our_form(name: str, value: Any) -> Any:
    if name == "stop_strings":
        return tuple(value) if isinstance(value, list) else (value,)
    return value


def _missing(config: dict[str, Any], neutral: dict[str, Any]) -> list[str]:
    """What the file says and would change replies, were it supported."""
    values = {name: config.get(name) for name in sorted(neutral)}
    nothing: tuple[Any, ...] = (None, False, [], {})
    return [
        f"{name} {shown(value)}" for name, value in values.items() if value not in nothing and value != neutral[name]
    ]
