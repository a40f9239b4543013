"""`serve`: a bundle, or several, behind OpenAI's and Ollama's HTTP APIs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rrt_edge.cli.common import BundlePath, Duration, guarded
from rrt_edge.cli.help import OTHER, command, section
from rrt_edge.cli.options import exit_policy_option, load_model, load_options
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.runtime.model import Model
    from rrt_edge.runtime.server.shelf import ManyBundles

KEY_VARIABLE = "RRT_EDGE_API_KEY"


@command(epilog="Example: rrt-edge serve bundle --ui, then open http://127.0.0.1:8080")
@click.argument("bundle", type=BundlePath(), required=False)
@section("Models")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Serve all bundles in a folder, each loaded when a request names it.",
)
@click.option(
    "--idle", type=Duration(), default="10m", show_default=True,
    help="Unload a bundle of several when nobody has asked it for so long (90s, 10m, 2h); 0: never.",
)  # fmt: skip
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
    bundle: Path | None, models_dir: Path | None, idle: float,
    host: str, port: int, ui: bool, name: str | None, alias: tuple[str, ...], any_model: bool,
    exit_policy: str | None, api_key: str | None, cors: tuple[str, ...], max_queue: int, max_tokens: int,
    default_tokens: int, max_body: int, kv_budget: int, grace: float, verbose: bool, **values: Any,
) -> None:  # fmt: skip
    """Serve a bundle to clients of OpenAI's API (/v1/chat/completions, /v1/responses, /v1/completions, /v1/models) and
    of Ollama's (/api/chat, /api/generate). Without a bundle: all those that are installed, or in --models-dir; each is
    loaded when a request names it.

    Requests share one engine, each token at a depth of its own. Ctrl-C ends the server when the running replies have
    ended, or after --grace seconds; a second Ctrl-C at once.
    """
    from rrt_edge.runtime.server.server_options import ServerOptions, hosts_for
    from rrt_edge.runtime.server.serving import listen, run
    from rrt_edge.runtime.server.shelf import ManyBundles

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    _check_names(bundle, models_dir, name, alias, any_model)
    key = api_key or os.environ.get(KEY_VARIABLE) or None
    options = ServerOptions(
        name=name or ("" if bundle is None else bundle.resolve().name),
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
    socket = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{socket.getsockname()[1]}"
    with socket, ExitStack() as stack:
        served: Model | ManyBundles
        if bundle is not None:
            served = stack.enter_context(load_model(bundle, values))
            what, where = options.name, f", on {served.device}"
        else:
            folders = _folders(models_dir)
            served = ManyBundles(folders, lambda path: load_model(path, values), options, idle)
            what, where = ", ".join(sorted(folders())), ", each loaded when a request names it"

        def ready() -> None:
            page = f"; chat at {address}/" if ui else ""
            click.echo(f"{what}: serving at {address}/v1{page}{where} (Ctrl-C ends)")
            if key is None and not options.hosts:
                click.echo(f"warning: anybody who reaches {host} may use it; set {KEY_VARIABLE}", err=True)

        def ending() -> None:
            click.echo("ending when the running replies have ended; Ctrl-C again ends at once", err=True)

        run(served, options, socket, ready, ending)


def _check_names(
    bundle: Path | None, models_dir: Path | None, name: str | None, alias: tuple[str, ...], any_model: bool
) -> None:
    if bundle is not None and models_dir is not None:
        raise BadInputError("--models-dir: goes without a bundle; leave one of the two out")
    for option, given in (("--name", name), ("--alias", alias), ("--any-model", any_model)):
        if bundle is None and given:
            raise BadInputError(f"{option}: goes with one bundle alone; several have the names of their folders")


def _folders(models_dir: Path | None) -> Callable[[], dict[str, Path]]:
    """What lists the bundles by name, as they are when it is called.

    Raises:
        BadInputError: there are none.
    """
    from rrt_edge.runtime.library.store import bundles_in, folder_of, installed_names

    if models_dir is None:

        def folders() -> dict[str, Path]:
            return {name: folder_of(name) for name in installed_names()}

        if not folders():
            raise BadInputError("no bundle is installed; name one, or install one with rrt-edge pull")
        return folders
    if not models_dir.is_dir():
        raise BadInputError(f"--models-dir {models_dir}: no such folder")
    if not bundles_in(models_dir):
        raise BadInputError(f"--models-dir {models_dir}: holds no bundle; make one there with rrt-edge export")
    return lambda: bundles_in(models_dir)


def _page() -> Path:
    """The browser chat's page, as installed."""
    from importlib.resources import files

    page = Path(str(files("rrt_edge.web_chat") / "index.html"))
    if not page.is_file():
        raise BadInputError(f"{page}: missing from the installation; install rrt-edge again")
    return page
