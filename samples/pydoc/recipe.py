"""Build the pydoc chat data: what does a standard-library function, class or method do?

    python samples/pydoc/recipe.py OUT            writes train, gate, heldout and calibrate .jsonl
    python samples/pydoc/recipe.py OUT --rounds 8 fewer phrasings of each question
    python samples/pydoc/recipe.py OUT --turns 6  chats of up to six turns
    python samples/pydoc/recipe.py --names        makes samples/pydoc/names.txt anew from this Python

Everything follows from names.txt, the docstrings of the running Python and one seed. Another Python version has
other docstrings: the script says how many names it does not find.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import random
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

NAMES = Path(__file__).parent / "names.txt"
SEED = 20240
SHORTEST, LONGEST = 12, 90  # characters of an answer
HELD_OUT_SHARE = 0.15  # of the phrasings: half of these for the test, a quarter each for the gate and its threshold
GATE_ROUNDS = 4  # times each name is asked in gate.jsonl
QUESTIONS = 500  # asked in each held-out set
TURNS = (5, 3, 2, 2, 2, 2)  # how often a chat has one turn, two, ..

# Left out: pictures and games, tests, code made for other tools, and modules whose docstrings repeat another's.
SKIPPED = {
    *("antigravity", "this", "turtle", "turtledemo", "tkinter", "idlelib", "test", "ensurepip", "pydoc_data"),
    *("lib2to3", "distutils", "encodings", "asyncore", "asynchat", "imp", "msilib"),
    *("posix", "nt", "posixpath", "ntpath", "sre_compile", "sre_parse", "sre_constants"),
}

OPENERS = [
    "", "Hi, ", "Hello, ", "Hey, ", "Please: ", "Quick question: ", "One question: ", "In short, ", "In one line, ",
    "Briefly, ", "I forgot: ", "Remind me, ", "Can you help? ", "In Python, ", "Python question: ", "So, ", "Okay, ",
    "For my notes: ", "I am reading some code: ", "Excuse me, ",
]  # fmt: skip
CORES = [
    "what does {} do", "what is {} for", "explain {}", "describe {}", "tell me what {} does", "what is {}",
    "what would I use {} for", "how would you describe {}", "give me the summary of {}", "document {}",
    "what is the purpose of {}", "say what {} does",
]  # fmt: skip
CLOSERS = ["", "?", "? Thanks.", ", please", ", please?", " in Python?", ". Thank you!", "!", "?? I need it now."]

GREETINGS = ["Hi", "Hello", "Hi!", "Hello!", "Hey", "Good morning", "Who are you?", "What can you do?", "Help"]
GREETING_ANSWER = "Hello! Ask me what a function, class or method of Python's standard library does."


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    sentence = re.match(r".+?[.!?](?=\s|$)", paragraph)
    return sentence.group() if sentence else paragraph


def answer_for(thing: object) -> str | None:
    """The sentence that says what `thing` does, or None where its docstring holds none of the right length."""
    doc = getattr(thing, "__doc__", None)
    if not isinstance(doc, str):
        return None
    sentence = first_sentence(doc)
    looks_like_prose = "->" not in sentence and "DEPRECATED" not in sentence and sentence[:1].isupper()
    if SHORTEST <= len(sentence) <= LONGEST and looks_like_prose and sentence.isascii():
        return sentence
    return None


def public_modules() -> Iterator[str]:
    for top in sorted(sys.stdlib_module_names):
        if top.startswith("_") or top in SKIPPED:
            continue
        yield top
        if top == "os":
            yield "os.path"  # an attribute of os, known to users by this name
        try:
            paths = getattr(importlib.import_module(top), "__path__", [])
        except ImportError:  # a module of another operating system
            continue
        for found in pkgutil.iter_modules(paths, f"{top}."):
            parts = found.name.split(".")
            if not any(part.startswith("_") or part in ("test", "tests", "dummy") for part in parts):
                yield found.name


def public_things() -> Iterator[tuple[str, object]]:
    """Each public function, class and method of the standard library with its dotted name."""
    for module_name in public_modules():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        exported = getattr(module, "__all__", None)
        for name in sorted(exported or vars(module)):
            thing = getattr(module, name, None)
            if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            home = getattr(thing, "__module__", None) or module_name
            if exported is None and home != module_name and module_name != "builtins":
                continue  # imported from elsewhere
            dotted = name if module_name == "builtins" else f"{module_name}.{name}"
            yield dotted, thing
            if inspect.isclass(thing):
                for member in sorted(vars(thing)):
                    if not member.startswith("_") and inspect.isroutine(getattr(thing, member, None)):
                        yield f"{dotted}.{member}", getattr(thing, member)


def discover_names() -> list[str]:
    """Names with an answer of their own: where several share a sentence, the shortest name keeps it."""
    best: dict[str, str] = {}
    for name, thing in public_things():
        answer = answer_for(thing)
        if answer is None or name.count(".") > 3 or len(name) > 60:
            continue
        known = best.get(answer)
        if known is None or (len(name), name) < (len(known), known):
            best[answer] = name
    return sorted(best.values())


def resolve(name: str) -> object | None:
    """The object a dotted name of the standard library stands for, or None where this Python lacks it."""
    parts = name.split(".")
    for split in range(len(parts), -1, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:split]) or "builtins")
            for part in parts[split:]:
                thing = getattr(thing, part)
            return thing
        except (ImportError, AttributeError):
            continue
    return None


def load_answers() -> dict[str, str]:
    """Name -> answer for the committed names, as far as the running Python knows them."""
    answers = {name: answer_for(resolve(name)) for name in NAMES.read_text("utf-8").split()}
    return {name: answer for name, answer in answers.items() if answer}


@dataclass(frozen=True)
class Phrasings:
    """All phrasings of the question, each in one part alone.

    The gate learns from phrasings the body was not trained on: on those it was, the first loop is hardly ever wrong.
    """

    train: list[str]
    held_out: list[str]
    gate: list[str]
    calibrate: list[str]


def phrasings(seed: int = SEED) -> Phrasings:
    combinations = ["".join(parts) for parts in product(OPENERS, CORES, CLOSERS)]
    combinations = [text[0].upper() + text[1:] for text in combinations]
    random.Random(seed).shuffle(combinations)
    held = round(HELD_OUT_SHARE * len(combinations) / 2)
    unseen = combinations[held : 2 * held]
    return Phrasings(combinations[2 * held :], combinations[:held], unseen[: held // 2], unseen[held // 2 :])


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def training_chats(
    answers: dict[str, str], templates: list[str], rounds: int, most: int
) -> Iterator[list[dict[str, str]]]:
    """Chats of one to `most` turns; in each round every name is asked once, in a phrasing of its own."""
    rng = random.Random(SEED + 1)
    for _ in range(rounds):
        pairs = [(rng.choice(templates).format(name), answer) for name, answer in answers.items()]
        pairs += [(greeting, GREETING_ANSWER) for greeting in GREETINGS]
        rng.shuffle(pairs)
        while pairs:
            turns = rng.choices(range(1, most + 1), TURNS[:most])[0]
            yield [message for pair in pairs[:turns] for message in turn(*pair)]
            del pairs[:turns]


def asked_once(answers: dict[str, str], templates: list[str], seed: int) -> list[list[dict[str, str]]]:
    """One-turn chats about `QUESTIONS` different names, in the given phrasings."""
    rng = random.Random(seed)
    names = rng.sample(sorted(answers), min(QUESTIONS, len(answers)))
    return [turn(rng.choice(templates).format(name), answers[name]) for name in names]


def write_lines(path: Path, lines: Iterator[str]) -> int:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        return sum(bool(file.write(line + "\n")) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("build/pydoc"))
    parser.add_argument("--rounds", type=int, default=30, help="times each name is asked in train.jsonl")
    parser.add_argument(
        "--turns", type=int, default=3, choices=range(1, len(TURNS) + 1), help="of the longest chats in train.jsonl"
    )
    parser.add_argument("--names", action="store_true", help="make names.txt anew and stop")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # deprecated modules say so when imported

    if arguments.names:
        names = discover_names()
        NAMES.write_text("\n".join(names) + "\n", "utf-8", newline="\n")
        print(f"{NAMES}: {len(names)} names")
        return

    answers = load_answers()
    missing = len(NAMES.read_text("utf-8").split()) - len(answers)
    if missing:
        print(f"{missing} names are not in Python {sys.version.split()[0]}: made with Python 3.11 on Linux")
    templates = phrasings()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chats = {
        "train.jsonl": training_chats(answers, templates.train, arguments.rounds, arguments.turns),
        "gate.jsonl": training_chats(answers, templates.gate, GATE_ROUNDS, arguments.turns),
        "heldout.jsonl": iter(asked_once(answers, templates.held_out, SEED + 2)),
        "calibrate.jsonl": iter(asked_once(answers, templates.calibrate, SEED + 3)),
    }
    for file_name, messages in chats.items():
        lines = (json.dumps({"messages": chat}) for chat in messages)
        print(f"{arguments.out / file_name}: {write_lines(arguments.out / file_name, lines)} chats")
    counts = ", ".join(f"{len(part)} {name}" for name, part in vars(templates).items())
    print(f"{len(answers)} names; phrasings: {counts}")


if __name__ == "__main__":
    main()
