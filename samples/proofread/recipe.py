"""Make the proofreader's texts: pairs of a text with errors and the right text.

    python samples/proofread/recipe.py SENTENCES build/proofread

SENTENCES holds one right sentence a line (.txt or .txt.gz): README.md says how to make it. Written are train.jsonl,
heldout.jsonl (the test), development.jsonl (to choose a learning rate), gate.jsonl and calibrate.jsonl (for the exits).
Everything follows from that file, the word lists beside this script and one seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import corpus_text
import pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=pairs.SEED)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N training texts and stop")
    arguments = parser.parse_args()

    sets = pairs.divide(corpus_text.read_lines(arguments.sentences), arguments.seed)
    made = pairs.make_sets(sets, arguments.seed)
    if arguments.show:
        for pair in made["train.jsonl"][: arguments.show]:
            print(f"- {pair.text}\n+ {pair.correct}\n  {', '.join(pair.kinds) or 'no error'}\n")
        return

    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, some in made.items():
        pairs.write_pairs(arguments.out / name, ((pair.text, pair.correct) for pair in some))
        clean = sum(not pair.edits for pair in some)
        errors = sum(len(pair.edits) for pair in some)
        print(f"{arguments.out / name}: {len(some)} texts, {clean} without an error, {errors} errors")
    print(", ".join(f"{kind} {count}" for kind, count in pairs.kinds_of(made["train.jsonl"]).most_common()))


if __name__ == "__main__":
    main()
