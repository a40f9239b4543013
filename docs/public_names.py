"""Write docs/reference/names.md: every public name with its type, read from the sources.

python docs/public_names.py [FILE]
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent / "reference" / "names.md"
PACKAGES = ("rrt_edge.runtime", "rrt_edge", "rrt_edge.exporters")
INSIDE = ("Holder",)  # bases that are no public name
WORDS = {  # types that are a choice of words: where they stand
    "ContextFull": "rrt_edge.runtime.interfaces",
    "LoadRule": "rrt_edge.runtime.bundle.kv_rule_names",
    "RunRuleName": "rrt_edge.runtime.bundle.kv_rule_names",
}
WIDTH = 110  # characters of a line
Function = ast.FunctionDef | ast.AsyncFunctionDef
HEAD = """# Public names

What a program may import, {count} names, with their types: this page is made from the sources. Everything else is
inside and may change with any version. Both a `Model` and a `Session` are a `TextModel`, and have its methods beside
their own. What arguments mean is told in the references of [rrt_edge.runtime](runtime.md), [rrt_edge](rrt_edge.md) and
[rrt_edge.exporters](exporters.md), how they go together in [Embed](../embedding.md).
"""


def sentence(node: ast.AST) -> str:
    """The first sentence of what a node's docstring says, as a comment."""
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())  # type: ignore[arg-type]
    first = text.split(". ")[0].removesuffix(".").removesuffix(";").removesuffix(":")
    return f"# {first}" if first else ""


def typed(node: ast.AST) -> str:
    """Source text, without the modules that names are taken from."""
    return re.sub(r"\binterfaces\.", "", ast.unparse(node)).replace("'", '"')


def signature(node: Function, name: str) -> str:
    """A function's line, one argument a line where it is long."""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {typed(node.returns)}" if node.returns else ""
    told = re.sub(r"(?<=[^\s=])=(?=[^=])", " = ", typed(node.args))
    line = f"{word} {name}({told}){returns}"
    if len(line) <= WIDTH:
        return line
    arguments, depth = [""], 0
    for letter in told:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            arguments.append("")
        else:
            arguments[-1] += letter
    inner = "".join(f"    {argument.strip()},\n" for argument in arguments)
    return f"{word} {name}(\n{inner}){returns}"


def field(node: ast.AnnAssign) -> str:
    """A field's line; of `option(1.0, ...)` the default."""
    line = f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
    value = node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "option":
        value = value.args[0]
    return line if value is None or ast.unparse(value).startswith("field(") else f"{line} = {typed(value)}"


def member(node: ast.stmt) -> str:
    """The lines of what a class has, empty where that is no public name."""
    if isinstance(node, ast.AnnAssign):
        return "" if ast.unparse(node.target).startswith("_") else field(node)
    if not isinstance(node, Function) or node.name.startswith("_"):
        return ""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(name in ("property", "cached_property") for name in decorators):
        assert node.returns is not None
        return f"{node.name}: {typed(node.returns)}  {sentence(node)}".rstrip()
    prefix = "@classmethod\n" if "classmethod" in decorators else ""
    return f"{prefix}{signature(node, node.name)}\n    {sentence(node)}".rstrip()


def listed(name: str, value: Any, module: ModuleType) -> str:
    """The lines of a public name."""
    if not inspect.isclass(value) and not inspect.isfunction(value):  # an alias
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8")).body
        aliases = {ast.unparse(node.targets[0]): node for node in tree if isinstance(node, ast.Assign)}
        return f"{name} = {ast.unparse(aliases[name].value)}"
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, Function):
        return f"{signature(node, name)}\n    {sentence(node)}"
    assert isinstance(node, ast.ClassDef)
    bases = [base for base in map(ast.unparse, node.bases) if base not in INSIDE]
    head = f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"
    members = [lines for statement in node.body if (lines := member(statement))]
    body = "\n".join([sentence(node), *members])
    return f"{head}\n{textwrap.indent(body, '    ')}"


def page() -> str:
    parts: list[str] = []
    seen: set[str] = set()
    for package in map(importlib.import_module, PACKAGES):
        blocks = []
        for name in package.__all__:
            if name not in seen:
                module = importlib.import_module(package._HOMES.get(name, "rrt_edge.runtime.errors"))
                blocks.append(listed(name, getattr(package, name), module))
                seen.add(name)
        if not parts:
            blocks += [listed(name, None, importlib.import_module(home)) for name, home in WORDS.items()]
        parts.append(f"\n## {package.__name__}\n\n```pyi\n" + "\n\n".join(blocks) + "\n```\n")
    return HEAD.format(count=len(seen)) + "".join(parts)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page(), "utf-8")
