"""Tasks: `nox -s fast` in an environment of its own, `nox --no-venv -s fast` in the active one; `nox -l` lists them."""

from __future__ import annotations

from pathlib import Path

import nox

FAST = "not slow and not train and not browser and not device and not docs"

nox.options.sessions = ["lint", "types", "fast"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session) -> None:
    """The project and its tools; nothing with --no-venv."""
    if session.virtualenv.is_sandboxed:
        strict = ("--config-settings", "editable_mode=strict")
        session.install("-c", "constraints.txt", "-e", ".[dev]", *strict)


@nox.session
def test(session: nox.Session) -> None:
    """All tests: `nox -s test -- -n 2`, `nox -s test -- tests/runtime -k stream`."""
    install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """The tests that take a minute together."""
    install(session)
    session.run("python", "-m", "pytest", "-m", FAST, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format, and which room imports which."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "-m", "pytest", "-q", "tests/test_architecture.py")


@nox.session
def types(session: nox.Session) -> None:
    """mypy on the package as it is installed."""
    install(session)
    trees = sorted(Path("build").glob("__editable__.rrt_edge-*"))  # what a strict editable installation links
    if not trees:
        session.error("install the project in strict editable mode first (CONTRIBUTING.md)")
    session.chdir(trees[-1])
    session.run("mypy", "--config-file", "../../pyproject.toml", "--cache-dir", "../../.mypy_cache", "-p", "rrt_edge")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation: it builds, its code runs; `nox -s docs -- serve` shows it."""
    install(session)
    if session.posargs == ["serve"]:
        session.run("mkdocs", "serve")
    else:
        session.run("python", "-m", "pytest", "-m", "docs", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """The sdist and the wheel, the demo in both, into dist/."""
    install(session)
    session.run(".ci/package", external=True)


@nox.session(venv_backend="none")
def ci(session: nox.Session) -> None:
    """Everything that a change must pass, in an environment of its own."""
    session.run(".ci/run", external=True)
