"""The command line: one subcommand for each arrow of the way from a checkpoint to text."""

from __future__ import annotations

from rrt_edge.cli.interrupts import importing

with importing():
    import click

    from rrt_edge.cli.group import Commands
    from rrt_edge.runtime.system.version import __version__

COMMANDS = {  # name: where it is, and what --help says of it
    "run": ("run:run", "Talk with a model of your own: exported once, then found again."),
    "convert": ("convert:convert", "Turn a checkpoint into a recursive checkpoint."),
    "train": ("train:train", "Train a recursive checkpoint back: distillation, exits, gate."),
    "export": ("export:export", "Export a checkpoint as a bundle."),
    "verify": ("verify:verify", "Check a bundle, alone or against its source."),
    "inspect": ("inspect:inspect", "Show what a bundle or a checkpoint is made of."),
    "eval": ("eval:evaluate", "Score a bundle or a checkpoint at every depth."),
    "calibrate": ("calibrate:calibrate", "Find thresholds that keep a promise of agreement."),
    "generate": ("generate:generate", "Complete one or more prompts."),
    "chat": ("chat.command:chat", "Talk with a bundle in the terminal."),
    "serve": ("serve:serve", "Serve a bundle over HTTP."),
    "bench": ("bench:bench", "Measure speed by exit policy, KV rule and batch."),
    "pull": ("pull:pull", "Install a bundle under a short name."),
    "list": ("list:list_bundles", "List the installed bundles."),
    "rm": ("rm:remove", "Remove installed bundles."),
    "devices": ("devices:devices", "Show what bundles can run on here."),
    "doctor": ("doctor:doctor", "Check this installation and what it runs on."),
    "completion": ("completion:completion", "Print the completion script of a shell."),
}


@click.group(cls=Commands, package=__name__, homes=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rrt-edge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Relaxed Recursive Transformers for the edge: convert, train, export and run with early exit."""
