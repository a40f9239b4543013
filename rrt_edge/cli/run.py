"""`run`: one word for a model of one's own, which is exported once and found again by its content."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rrt_edge.cli.chat.command import chat
from rrt_edge.cli.common import guarded, json_option, quiet_transformers
from rrt_edge.cli.dataclass_options import from_options, options_of
from rrt_edge.cli.generate import generate, read_prompt
from rrt_edge.cli.help import BUNDLE, CHECKPOINT, RECURSIVE_CHECKPOINT, command, section
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.options import load_model, load_options, read_sampling, reply_options, sampling_options
from rrt_edge.cli.sources import BundleOrSource, Source
from rrt_edge.cli.terminal import progress_bar, size
from rrt_edge.conversion.content import content_hash, signatures
from rrt_edge.conversion.folder import RECURSIVE, check_folder, gguf_fields
from rrt_edge.conversion.gguf_header import read_header
from rrt_edge.exporters.checks import check_source_options, keeps_blocks
from rrt_edge.exporters.options import SOURCE, ExportOptions
from rrt_edge.model.sharing import own_loops
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

UNSHARED = 1  # loops of a model that needs no training
EXPORTED = [field.name for field in dataclasses.fields(ExportOptions)]
CHOICES = ("4", "8", "16", "32", SOURCE)


@command(
    reads=(BUNDLE, CHECKPOINT, RECURSIVE_CHECKPOINT), epilog="Example: rrt-edge run SmolLM2-135M-Instruct.Q4_1.gguf"
)
@click.argument("source", type=BundleOrSource())
@click.argument("prompt", required=False)
@click.option("--system", default="", help="A system message: tells the model how to behave.")
@click.option("--plain", is_flag=True, help="Show replies as they are written, not rendered as Markdown.")
@section("How it is exported, once")
@click.option(
    "--bits",
    type=click.Choice(CHOICES),
    help="Bits of the weights.  [default: 4; source, as they are, for a GGUF file whose layers are Q4_0 or Q8_0]",
)
@click.option("--loops", type=int, help="Share the layers; the model then needs training.  [default: 1: unshared]")
@options_of(
    ExportOptions, section="How it is exported, once", without={"bits", "loops", "data", "data_tokens", "max_size"}
)
@sampling_options(without={"n", "logprobs", "first_loop"})
@reply_options
@load_options()
@json_option
@guarded
def run(source: Path | Source, prompt: str | None, as_json: bool, **flags: Any) -> None:
    """Talk with a model: a bundle, or what becomes one.

    SOURCE is a checkpoint's folder, a GGUF file, a name on the Hugging Face hub, or a bundle. What is no bundle is
    exported once and kept (rrt-edge list, rm); the same content is found again, wherever it lies. With PROMPT, or where
    standard input is no terminal, one answer is given.
    """
    from rrt_edge.runtime.bundle.template_files import read_sources

    if prompt is None and not sys.stdin.isatty():
        prompt = read_prompt(None)
    if prompt is None and as_json:
        raise BadInputError("--json is of one answer: give a prompt")
    folder = _bundle(source, flags, as_json)
    values = {name: value for name, value in flags.items() if name not in EXPORTED}
    chats = read_sources(folder) is not None
    if not chats and not as_json:
        click.echo(f"{folder.name} has no chat template: it goes on from your text", err=True)
    context = click.get_current_context()
    if prompt is not None:
        values.pop("plain")
        context.invoke(generate, bundle=folder, prompt=prompt, as_json=as_json, **values)
    elif chats:
        context.invoke(chat, bundle=folder, **values)
    else:
        _continue_texts(folder, values)


def _bundle(source: Path | Source, flags: dict[str, Any], as_json: bool) -> Path:
    """The folder of a bundle: the source itself, what was exported from it before, or what is now."""
    chosen = {name: flags[name] for name in EXPORTED if flags.get(name) not in (None, ())}
    if isinstance(source, Path):
        if chosen:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise BadInputError(f"{source}: is a bundle; {names} can be chosen only where one is exported")
        return source
    from rrt_edge.runtime.library.exported import export_once, find_exported
    from rrt_edge.runtime.library.origin import Origin
    from rrt_edge.runtime.system.home import home

    path = source.local()
    about = About.read(path)
    options = check_source_options(path, about.fields, about.options(chosen))
    before, notes = signatures(path), Console(stderr=True, quiet=as_json, soft_wrap=True, highlight=False)
    with progress_bar(notes, not as_json) as progress:
        content = content_hash(path, home() / "hashes.json", progress)
    about.warn(source.text, options, notes)
    place = source.text if source.is_of_hub else str(Path(source.text).absolute())
    origin = Origin(place, content, json.loads(json.dumps(vars(options))))
    folder = find_exported(origin)
    if folder is not None:
        return folder

    def write(out: Path) -> None:
        with importing():
            from rrt_edge.exporters import export

            quiet_transformers()
        notes.print(f"exporting {source.text}, {_how(options)}: once, later starts find it", markup=False)
        with progress_bar(notes, not as_json) as progress:
            report = export(str(path), out, **vars(options), progress=progress)
        if signatures(path) != before:
            raise RRTEdgeError(f"{source.text}: was written to while it was exported; run it again")
        notes.print(f"{size(report.bytes)} after {report.seconds:.0f} s", markup=False)

    folder = export_once(origin, about.name(source.stem, options), write)
    notes.print(f"it is kept as {folder.name} (rrt-edge list, rrt-edge rm {folder.name})", markup=False)
    return folder


@dataclasses.dataclass(frozen=True)
class About:
    """What decides how a source is exported.

    Attributes:
        fields: of its config.
        keeps_blocks: whether its numbers are in blocks that a second rounding would only spoil.
    """

    path: Path
    fields: dict[str, Any]
    keeps_blocks: bool

    @classmethod
    def read(cls, path: Path) -> About:
        """
        Raises:
            BadInputError: it is no source, or a damaged one.
        """
        if not path.is_file():
            return cls(path, check_folder(path), False)
        header = read_header(path)
        return cls(path, gguf_fields(header), keeps_blocks(header))

    @property
    def is_recursive(self) -> bool:
        return bool(self.fields["model_type"] == RECURSIVE)

    def options(self, chosen: dict[str, Any]) -> ExportOptions:
        """What was chosen, else unshared and in 4 bits, or in the bits that the source has.

        Raises:
            BadInputError: an option is not allowed, or does not go with the source.
        """
        shared = [name for name in ("loops", "rank", "init") if name in chosen]
        if self.is_recursive and shared:
            raise BadInputError(f"{self.path}: is recursive already; --{shared[0]} was chosen where it was converted")
        unshared = {} if own_loops(self.fields) else {"loops": UNSHARED}
        options = from_options(ExportOptions, {**unshared, **chosen}).resolved(self.fields)
        rounded = {"bits", "block_size"} & chosen.keys() or options.eight_bit
        free = not rounded and options.loops == UNSHARED and not options.rank
        return dataclasses.replace(options, bits=SOURCE) if free and self.keeps_blocks else options

    def name(self, stem: str, options: ExportOptions) -> str:
        """What the bundle is called: as its source, with what was chosen."""
        from rrt_edge.runtime.library.store import fitting_name

        usual, values = vars(self.options({})), vars(options)
        differing = [f"{name} {value}".replace("_", "-") for name, value in values.items() if value != usual[name]]
        return fitting_name(" ".join([stem, *differing]))

    def warn(self, source: str, options: ExportOptions, notes: Console) -> None:
        """Say so where a model will not answer sensibly before it is trained."""
        if self.is_recursive:
            if self.fields.get("loops", 2) > UNSHARED and not self.fields.get("gate_trained"):
                line = "its exit gate is not trained; where it is only converted so far, it makes no sense before"
                notes.print(f"Warning: {source}: {line} rrt-edge train", markup=False)
        elif own_loops(self.fields) is None and options.loops != UNSHARED:
            rank = f" --rank {options.rank}" if options.rank else ""
            notes.print(
                f"Warning: with --loops {options.loops} layers are shared, and what the model says makes no sense "
                f"before it is trained: rrt-edge convert {source} recursive --loops {options.loops}{rank}, then "
                f"rrt-edge train recursive trained --data FILE --teacher {source}, then rrt-edge run trained",
                markup=False,
            )
        elif options.rank:
            line = "makes up for what layers lose by sharing; with --loops 1 nothing is shared and it only takes room"
            notes.print(f"Warning: --rank {options.rank} {line}", markup=False)


def _how(options: ExportOptions) -> str:
    bits = "in its own bits" if options.bits == SOURCE else f"in {options.bits} bits"
    return bits if options.loops == UNSHARED else f"{bits}, {options.loops} loops"


def _continue_texts(folder: Path, values: dict[str, Any]) -> None:
    """Go on from one text after another, for a model that has not learnt to chat."""
    from rrt_edge.cli.chat.keys import Keyboard, stoppable
    from rrt_edge.cli.chat.view import styled, visible
    from rrt_edge.cli.terminal import depth_text

    fields, console = read_sampling(values), Console(highlight=False)
    keyboard = Keyboard({}, {})

    def shown(token: Any) -> Any:
        harmless = dataclasses.replace(token, text=visible(token.text))
        return depth_text(harmless, console) if values["show_depth"] else harmless.text

    with console.status("loading the bundle"):
        loaded = load_model(folder, values)
    with loaded as model:
        sampling = model.sampling(**fields)
        while True:
            try:
                text = keyboard.read()
                session = model.session(lazy_prompt=values["lazy_prompt"])
                full = values["context_full"]
                with stoppable() as stop, styled(console, shown) as view:
                    for token in session.stream(text, sampling, values["exit_policy"], context_full=full):
                        view.add(token)
                        if stop.asked():
                            break
            except EOFError:
                return
            except KeyboardInterrupt:
                click.echo("Ctrl-D leaves", err=True)
            except RRTEdgeError as error:
                console.print(f"error: {visible(str(error))}", style="red", markup=False)
