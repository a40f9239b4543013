"""`generate`: the answer to one prompt."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json
from rrt_edge.cli.help import BUNDLE, command
from rrt_edge.cli.options import (
    grammar_options,
    load_model,
    load_options,
    read_sampling,
    read_variables,
    reply_options,
    sampling_options,
)
from rrt_edge.cli.terminal import Thoughts, depth_text, legend
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.runtime import Prompt, Stats, Token


@command(
    reads=(BUNDLE,), epilog="Example: rrt-edge generate bundle 'What does os.path.join do?' --exit-policy threshold=0.9"
)
@click.argument("bundle", type=BundlePath())
@click.argument("prompt", required=False)
@click.option("--system", default="", help="A system message: tells the model how to behave.")
@click.option("--raw", is_flag=True, help="Do not put the prompt into the chat template.")
@click.option("--prompt-ids", help="Token ids instead of a prompt: 1,2,3.")
@grammar_options
@sampling_options(without={"n"})
@reply_options
@load_options()
@json_option
@guarded
def generate(
    bundle: Path, prompt: str | None, system: str, raw: bool, prompt_ids: str | None, exit_policy: str | None,
    show_depth: bool, lazy_prompt: bool | None, context_full: Any, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Answer one prompt, given as an argument or on standard input."""
    fields, variables = read_sampling(values), read_variables(values)
    if prompt_ids is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompt-ids, not both")
    text = None if prompt_ids is not None else read_prompt(prompt)
    with load_model(bundle, values) as model:
        sampling = model.sampling(**fields)
        if text is None:
            request: Prompt = _parse_ids(str(prompt_ids))
        elif system and not raw and model.template is not None:
            request = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        else:
            request = text
        session = model.session(lazy_prompt=lazy_prompt)
        console = Console(highlight=False, soft_wrap=True)
        thoughts = Thoughts(console, lambda token: depth_text(token, console) if show_depth else Text(token.text))
        stream = session.stream(
            request, sampling, exit_policy, raw=raw, context_full=context_full, chat_template_kwargs=variables
        )
        for token in stream:
            if as_json:
                continue
            thoughts.add(token)
            if show_depth:
                console.print(depth_text(token, console), end="")
            else:
                click.echo(token.text, nl=False)
        generation = stream.generation
    if as_json:
        return print_json(_generation_json(generation))
    stats = generation.stats
    click.echo()
    if generation.thought and not generation.text:
        click.echo("the reply ended inside its thought; raise --max-tokens, or lower --think-tokens", err=True)
    if show_depth:
        console.print(legend(model.loops, console))
    drafts = f", {stats.steps_per_token:.2f} steps a token, {drafts_of(stats)} stood"
    return click.echo(
        f"{stats.generated_tokens} tokens, {stats.decode_tokens_per_second:.0f} tokens/s on {stats.device}, mean depth "
        f"{stats.mean_depth:.2f} of {model.loops}, {stats.block_rows_per_token:.2f} block rows a token"
        f"{drafts if stats.drafted else ''}",
        err=True,
    )


def drafts_of(stats: Stats) -> str:
    """How many drafts stood, and of which source: `12 of 15 drafts (8 of 9 from the text)`."""
    text = f" ({stats.text_accepted} of {stats.text_drafted} from the text)" if stats.text_drafted else ""
    return f"{stats.accepted} of {stats.drafted} drafts{text}"


def read_prompt(argument: str | None) -> str:
    """The prompt from the command line or from a pipe."""
    if argument is not None and argument != "-":
        return argument
    prompt = "" if argument is None and sys.stdin.isatty() else sys.stdin.read().strip()
    if not prompt:
        raise BadInputError("no prompt; give it as an argument, or on standard input")
    return prompt


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"--prompt-ids {text!r}: must be token ids like 1,2,3") from None


def _generation_json(generation: Any) -> dict[str, Any]:
    stats = dataclasses.asdict(generation.stats)
    names = (
        "prompt_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "mean_depth",
        "block_rows_per_token", "steps_per_token", "drafted", "accepted", "text_drafted", "text_accepted",
        "peak_memory_bytes", "device", "kv_rule",
    )  # fmt: skip
    return {
        "text": generation.text,
        "thought": generation.thought,
        "prompt_tokens": stats["prompt_tokens"],
        "tokens": [_token_json(token) for token in generation.tokens],
        "finish_reason": generation.finish_reason,
        "stats": {name: stats[name] for name in names},
    }


def _token_json(token: Token) -> dict[str, Any]:
    payload: dict[str, Any] = {"id": token.id, "text": token.text, "depth": token.depth, "gate": token.gate}
    payload["gates"] = list(token.gates)
    if token.thought is not None:
        payload["thought"] = token.thought
    if token.first_loop is not None:
        payload["first_loop"] = token.first_loop
    if token.logprob is not None:
        payload |= {
            "logprob": token.logprob,
            "top_logprobs": [{"id": other, "logprob": p} for other, p in token.top_logprobs],
        }
    return payload
