"""The command line: one subcommand for each arrow of the way from a checkpoint to text."""

from __future__ import annotations

from rrt_edge.cli.interrupts import importing

with importing():
    import click

    from rrt_edge.cli.group import Commands
    from rrt_edge.runtime.system.version import __version__

COMMANDS = {  # as one goes; name: where it is, and what --help says of it
    "Talk": {
        "run": ("run:run", "Talk with a model: a bundle, or what becomes one."),
        "chat": ("chat.command:chat", "Talk with a bundle in the terminal."),
        "generate": ("generate:generate", "Answer one prompt."),
        "serve": ("serve:serve", "Serve a bundle to clients of OpenAI's API."),
    },
    "Installed bundles": {
        "pull": ("pull:pull", "Install a bundle under a short name."),
        "list": ("list:list_bundles", "List the installed bundles."),
        "rm": ("rm:remove", "Delete installed bundles."),
    },
    "From a checkpoint to a bundle": {
        "inspect": ("inspect:inspect", "Show what is inside a bundle, or what a checkpoint is."),
        "convert": ("convert:convert", "Turn a checkpoint into a recursive checkpoint."),
        "train": ("train:train", "Train a recursive checkpoint back."),
        "export": ("export:export", "Export a checkpoint as a bundle."),
        "verify": ("verify:verify", "Check a bundle, alone or against its source."),
    },
    "How good, how fast": {
        "eval": ("eval:evaluate", "Score a bundle or a recursive checkpoint on a known text."),
        "calibrate": ("calibrate:calibrate", "Find the thresholds that keep a promise of agreement."),
        "bench": ("bench:bench", "Measure prefill and decode of a bundle."),
    },
    "This machine": {
        "devices": ("devices:devices", "List what onnxruntime can run bundles on here."),
        "doctor": ("doctor:doctor", "Check this installation."),
        "completion": ("completion:completion", "Print the completion script of a shell."),
    },
}


@click.group(cls=Commands, package=__name__, homes=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rrt-edge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Relaxed Recursive Transformers for the edge: convert, train, export and run with early exit."""
