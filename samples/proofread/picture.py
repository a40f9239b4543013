"""Draw what a terminal shows of a corrected text: the README's picture.

python samples/proofread/picture.py samples/proofread/bundle docs/proofread.svg
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import showing
from proofread import Proofreader
from rich.console import Console
from rich.text import Text

TEXT = (
    "Thanks for you're mail. I recieved the documents yesterday but I has not had time to read them. "
    "We think that its a problem with the the power supply. He dont know where the keys is."
)
WIDTH = 96  # characters
FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  line-height: {line_height}px; white-space: pre }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def drawn(proofreader: Proofreader, text: str) -> str:
    """A terminal with a text that was corrected, and with the depths of its tokens, as SVG that loads nothing."""
    corrected = proofreader.correct(text)
    console = Console(
        record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print("$ python samples/proofread letter.txt", style="dim")
    console.print(Text.assemble(*showing.changes(corrected, coloured=True)))
    console.print("\n$ python samples/proofread --show-depth letter.txt", style="dim")
    console.print(Text.assemble(*showing.depths(corrected, True, proofreader.model.loops)), end="")
    return console.export_svg(title="", code_format=FORMAT, unique_id="proofread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default=TEXT)
    arguments = parser.parse_args()
    with Proofreader.load(arguments.bundle) as proofreader:
        arguments.out.write_text(drawn(proofreader, arguments.text), "utf-8", newline="\n")
    sys.stderr.write(f"{arguments.out}\n")


if __name__ == "__main__":
    main()
