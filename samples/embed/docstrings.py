"""Say what each function of a folder of Python files does, several at once: one model, a session in each thread.

python samples/embed/docstrings.py BUNDLE FOLDER [--threads 4]
"""

import argparse
import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rrt_edge.runtime import Model


def functions(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of every function that has one; files that are no Python are passed over."""
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                yield f"{path.stem}.{node.name}", text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()

    # One onnxruntime thread for each of ours: more would only wait for each other.
    # Reproducible: the same lines, however many threads take turns.
    with (
        Model.load(arguments.bundle, threads=1, reproducible=True) as model,
        ThreadPoolExecutor(arguments.threads) as pool,
    ):

        def summary(function: tuple[str, str]) -> str:
            name, text = function
            question = f"What does {name} do? Its docstring: {text}"
            reply = model.generate(question, max_tokens=60, stop="\n", temperature=0, context_full="truncate-left")
            return f"{name}: {reply.text}"

        for line in pool.map(summary, functions(arguments.folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
