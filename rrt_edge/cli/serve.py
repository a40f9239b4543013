"""`serve`: a bundle behind OpenAI's HTTP API."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click

from rrt_edge.cli.common import BundlePath, guarded
from rrt_edge.cli.help import OTHER, command, section
from rrt_edge.cli.options import exit_policy_option, load_model, load_options
from rrt_edge.runtime.errors import BadInputError

KEY_VARIABLE = "RRT_EDGE_API_KEY"


@command(epilog="Example: rrt-edge serve bundle --ui, then open http://127.0.0.1:8080")
@click.argument("bundle", type=BundlePath())
@section("Address")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: every one.")
@click.option("--port", default=8080, show_default=True, help="Port to listen on; 0: a free one.")
@click.option("--ui", is_flag=True, help="Serve a chat for the browser at /.")
@click.option("--name", help="What clients call the model.  [default: the bundle's name]")
@click.option("--alias", multiple=True, metavar="NAME", help="Another name for it; may be repeated.")
@click.option("--any-model", is_flag=True, help="Answer whatever model a request names.")
@section("What clients may")
@exit_policy_option
@click.option("--api-key", help=f"What clients must send as a bearer token; better in {KEY_VARIABLE}.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin call; may be repeated.")
@section("Limits")
@click.option("--max-queue", default=64, show_default=True, help="Requests that may wait; a further one gets 429.")
@click.option("--max-tokens", default=4096, show_default=True, help="Tokens of a reply at most.")
@click.option("--default-tokens", default=1024, show_default=True, help="The same where a chat names no number.")
@click.option("--max-body", default=1 << 20, show_default=True, help="Bytes of a request at most.")
@click.option("--kv-budget", default=1024, show_default=True, help="MiB of keys and values of running requests.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds that running replies have when told to end.")
@load_options(without={"kv_budget_bytes"})
@section(OTHER)
@click.option("--verbose", is_flag=True, help="Log each request.")
@guarded
def serve(
    bundle: Path, host: str, port: int, ui: bool, name: str | None, alias: tuple[str, ...], any_model: bool,
    exit_policy: str | None, api_key: str | None, cors: tuple[str, ...], max_queue: int, max_tokens: int,
    default_tokens: int, max_body: int, kv_budget: int, grace: float, verbose: bool, **values: Any,
) -> None:  # fmt: skip
    """Serve a bundle to clients of OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    Requests share one engine, each token at a depth of its own. Ctrl-C ends the server when the running replies have
    ended, or after --grace seconds; a second Ctrl-C at once.
    """
    from rrt_edge.runtime.server.server_options import ServerOptions, hosts_for
    from rrt_edge.runtime.server.serving import listen, run

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    socket = listen(host, port)
    with socket, load_model(bundle, values) as model:
        options = ServerOptions(
            name=name or bundle.resolve().name,
            aliases=alias,
            any_model=any_model,
            exit_policy=exit_policy,
            api_key=key,
            origins=cors,
            hosts=tuple(hosts_for(host)),
            most_waiting=max_queue,
            most_tokens=max_tokens,
            default_tokens=default_tokens,
            most_bytes=max_body,
            kv_budget_bytes=kv_budget << 20,
            grace=grace,
            page=_page() if ui else None,
        )
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{socket.getsockname()[1]}"

        def ready() -> None:
            page = f"; chat at {address}/" if ui else ""
            click.echo(f"{options.name}: serving at {address}/v1{page}, on {model.device} (Ctrl-C ends)")
            if key is None and not options.hosts:
                click.echo(f"warning: anybody who reaches {host} may use it; set {KEY_VARIABLE}", err=True)

        def ending() -> None:
            click.echo("ending when the running replies have ended; Ctrl-C again ends at once", err=True)

        run(model, options, socket, ready, ending)


def _page() -> Path:
    """The browser chat's page, as installed."""
    from importlib.resources import files

    page = Path(str(files("rrt_edge.web_chat") / "index.html"))
    if not page.is_file():
        raise BadInputError(f"{page}: missing from the installation; install rrt-edge again")
    return page
