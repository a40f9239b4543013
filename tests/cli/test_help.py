"""Help of every command: in the order one goes, nothing cut, long lists of options in sections."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from rrt_edge.cli import COMMANDS, main
from rrt_edge.cli.help import OTHER, Command

MOST_OPTIONS = 16  # of a section; a command that has more shows them in several
NAMES = list(main.commands)


def of(name: str) -> tuple[Command, click.Context]:
    command = main.commands[name]
    assert isinstance(command, Command)
    return command, click.Context(command, info_name=name, parent=click.Context(main, info_name="rrt-edge"))


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(main, [*arguments, "--help"], prog_name="rrt-edge", terminal_width=80)
    assert done.exit_code == 0
    return done.output


def test_the_commands_come_as_one_goes() -> None:
    assert [name for section in COMMANDS.values() for name in section] == NAMES
    first = [NAMES.index(name) for name in ("run", "pull", "inspect", "convert", "train", "export", "verify", "eval")]
    assert first == sorted(first)
    text = shown()
    places = [text.index(f"{heading}:") for heading in COMMANDS]
    assert places == sorted(places) and all(text.count(f"\n  {name} ") == 1 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_is_how_the_commands_help_begins_and_is_not_cut(name: str) -> None:
    command, _ = of(name)
    line = next(section[name][1] for section in COMMANDS.values() if name in section)
    assert " ".join(str(command.help).split()).startswith(line.removesuffix("."))
    row = next(row for row in shown().splitlines() if row.startswith(f"  {name} "))
    assert row.split(maxsplit=1)[1] == line and "..." not in row


def test_a_shell_completes_commands_with_their_whole_lines() -> None:
    items = main.shell_complete(click.Context(main), "")
    lines = {name: line for section in COMMANDS.values() for name, (_, line) in section.items()}
    assert {item.value: item.help for item in items if not item.value.startswith("-")} == lines


@pytest.mark.parametrize("name", NAMES)
def test_options_stand_in_sections_where_they_are_many(name: str) -> None:
    command, context = of(name)
    sections = command.sections(context)
    options = [option for part in sections.values() for option in part]
    every = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    assert len(options) == len(every) and set(map(id, options)) == set(map(id, every))
    assert all(0 < len(part) <= MOST_OPTIONS for part in sections.values())
    assert len(options) <= MOST_OPTIONS or len(sections) >= 3
    last = sections[OTHER] if OTHER in sections else sections["Options"]
    assert "--help" in last[-1].opts and [*sections][-1] in (OTHER, "Options")
    text = shown(name)
    assert [f"\n{heading}:\n" in text for heading in sections] == [True] * len(sections)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_one_line_to_copy(name: str) -> None:
    (line,) = (line for line in shown(name).splitlines() if line.startswith("  Example: "))
    assert line.startswith(f"  Example: rrt-edge {name}")


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_too_many_is_told_with_what_to_do(name: str) -> None:
    command, _ = of(name)
    if any(isinstance(param, click.Argument) and param.nargs == -1 for param in command.params):
        return  # takes any number, and says itself where there are too many
    given = [
        param.type.choices[0] if isinstance(param.type, click.Choice) else "here"
        for param in command.params
        if isinstance(param, click.Argument)
    ]
    required = [
        part
        for param in command.params
        if isinstance(param, click.Option) and param.required
        for part in (param.opts[0], "x")
    ]
    done = CliRunner().invoke(main, [name, *given, "surplus", *required], prog_name="rrt-edge")
    assert done.exit_code == 2 and "'surplus' is one argument too many; " in done.output, done.output
    if name == "pull":
        assert "rrt-edge pull SOURCE --name surplus" in done.output
