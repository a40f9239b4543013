"""Small random models, made once for all tests, and which tests run where."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["RRT_EDGE_DEVICE"] = "cpu"  # whatever else this machine has; tests of devices name theirs
os.environ["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] = "1"  # read when the provider's library is first loaded
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's: the workers share the cores
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background passes SIG_IGN on to commands
# `python -m pytest` puts the checkout first, where rrt_edge lacks the two folders that are mapped into it.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent.parent]

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests.manifests import edit_manifest

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 65536  # of `endless`
PARTS = (
    "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "rrt_edge", "runtime", "exporters", "samples/web_chat",
    "samples/pydoc", ".ci",
)  # fmt: skip
PREBUILT = ROOT / "tests" / "prebuilt"  # `bundle`, smaller, for where torch is missing
WITH_TORCH = find_spec("torch") is not None
MARKS = {  # where tests lie: their mark
    "cli/chat/test_pipe.py": "slow",
    "cli/chat/test_terminal.py": "slow",
    "cli/chat/test_view.py": "slow",
    "cli/test_cli.py": "slow",
    "conversion/test_by_data.py": "slow",
    "conversion/test_odd_checkpoints.py": "slow",
    "cli/test_inspect_source.py": "slow",
    "cli/test_library.py": "slow",
    "cli/test_run.py": "slow",
    "cli/test_thinking.py": "slow",
    "conversion/test_nested.py": "slow",
    "conversion/test_gguf.py": "slow",
    "exporters/test_data_rounding.py": "slow",
    "exporters/test_families.py": "slow",
    "exporters/test_source_bits.py": "slow",
    "exporters/test_sizes.py": "slow",
    "exporters/test_tokenizer_files.py": "slow",
    "exporters/test_ends.py": "slow",
    "integrations/": "slow",
    "model/test_ecosystem.py": "slow",
    "fuzz/": "slow",
    "exporters/test_graph.py": "slow",
    "runtime/bundle/test_template_families.py": "slow",
    "runtime/decoding/test_kv_rules.py": "slow",
    "runtime/decoding/test_last_rule.py": "slow",
    "runtime/decoding/test_pipeline.py": "slow",
    "runtime/measuring/test_bench.py": "slow",
    "runtime/running/test_hostile_graphs.py": "slow",
    "runtime/running/test_int8_cache.py": "slow",
    "runtime/running/test_step.py": "slow",
    "runtime/running/test_weight_cache.py": "slow",
    "runtime/server/test_clients.py": "slow",
    "runtime/server/test_endings.py": "slow",
    "runtime/server/test_failures.py": "slow",
    "runtime/server/test_hostile.py": "slow",
    "runtime/server/test_limits.py": "slow",
    "runtime/server/test_thinking.py": "slow",
    "runtime/test_default_sampling_everywhere.py": "slow",
    "runtime/test_isolation.py": "slow",
    "runtime/test_reproducible.py": "slow",
    "runtime/test_families.py": "slow",
    "samples/test_demo.py": "slow",
    "samples/test_embed.py": "slow",
    "samples/test_proofread_command.py": "slow",
    "samples/test_proofread_lsp.py": "slow",
    "test_package.py": "slow",
    "training": "train",
    "samples/test_web_chat": "browser",
    "samples/test_proofread_page.py": "browser",
    "runtime/devices": "device",
    "test_docs.py": "docs",
}


class TestModule(pytest.Module):
    """A test file that is skipped, where torch is missing, if it imports something that is not installed either."""

    def collect(self) -> Any:
        try:
            return super().collect()
        except self.CollectError as error:
            if WITH_TORCH or not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            reason = f"needs {error.__cause__.name}: pip install -e '.[dev]'"
            raise pytest.skip.Exception(reason, allow_module_level=True) from error


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = TestModule.from_parent(parent, path=module_path)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(ROOT / "tests").as_posix()
        for start, mark in MARKS.items():
            if place.startswith(start):
                item.add_marker(mark)


@pytest.fixture(scope="session", autouse=True)
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user of each worker's own, who has installed nothing; where a wheel is tested, not its demo either."""
    from rrt_edge.runtime.library import store

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRT_EDGE_HOME", str(tmp_path_factory.mktemp("user")))
        patch.setattr(store, "_DEMO", store.bundles_folder().parent / "demo")
        yield


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder by name that the first test to need it writes, for all of pytest-xdist's workers; nobody changes it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made"
    root.mkdir(exist_ok=True)

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that did not get to the end
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """What writes random checkpoints with transformers; skips where torch is missing."""
    return pytest.importorskip("tests.checkpoints")


@pytest.fixture(scope="session")
def make_source(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random Llama with a tokenizer; keyword arguments change its config."""

    def make(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("source")
        checkpoints.write_source(folder, **changes)
        return folder

    return make


@pytest.fixture(scope="session")
def source(make_once: Callable[..., Path], checkpoints: ModuleType) -> Path:
    return make_once("source", checkpoints.write_source)


@pytest.fixture(scope="session")
def make_recursive(
    source: Path, checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Convert the source; the gate gets random weights, so that tokens leave at different depths."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("recursive") / "checkpoint"
        checkpoints.write_recursive(source, folder, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def recursive(make_once: Callable[..., Path], source: Path, checkpoints: ModuleType) -> Path:
    """Three loops, rank 4."""
    return make_once("recursive", lambda folder: checkpoints.write_recursive(source, folder))


@pytest.fixture(scope="session")
def make_bundle(make_recursive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a recursive checkpoint of so many loops."""
    from rrt_edge.exporters import export

    def make(loops: int = 3, bits: int = 32, rank: int = 4, kv_bits: int = 32) -> Path:
        bundle = tmp_path_factory.mktemp("bundle") / "bundle"
        export(make_recursive(loops=loops, rank=rank), bundle, bits=bits, kv_bits=kv_bits)
        return bundle

    return make


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest, make_once: Callable[..., Path]) -> Path:
    """The float32 bundle of `recursive`, or the one in tests/prebuilt."""
    if not WITH_TORCH:
        return make_once("bundle", lambda folder: shutil.copytree(PREBUILT, folder))
    from rrt_edge.exporters import export

    recursive: Path = request.getfixturevalue("recursive")
    return make_once("bundle", lambda folder: export(recursive, folder, bits=32))


@pytest.fixture(scope="session")
def demo(make_once: Callable[..., Path], checkpoints: ModuleType) -> Path:
    """The bundle of the trained demo model."""
    from rrt_edge.exporters import export

    return make_once("pydoc", lambda folder: export(ROOT / "samples" / "pydoc" / "recursive", folder))


@pytest.fixture(scope="session")
def thinker(make_once: Callable[..., Path], checkpoints: ModuleType) -> Path:
    """A model that thinks before it answers, and always says the same (tests/thinker.py)."""
    from tests.thinker import write_thinker

    return make_once("thinker", write_thinker)


@pytest.fixture(scope="session")
def caller(make_once: Callable[..., Path], checkpoints: ModuleType) -> Path:
    """A model that calls functions, and always the same (tests/caller.py)."""
    from tests.caller import write_caller

    return make_once("caller", write_caller)


@pytest.fixture(scope="session")
def endless(make_once: Callable[..., Path], checkpoints: ModuleType) -> Path:
    """A random model whose replies nothing ends but a context of 65,536 tokens (`CONTEXT`)."""

    def write(folder: Path) -> None:
        checkpoints.write_endless(folder, CONTEXT)
        edit_manifest(folder, lambda fields: fields.update(eos_token_ids=[]))

    return make_once("endless", write)


@pytest.fixture
def always_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drafts are made that a lesser depth can make: of random models hardly any stands, so that they would soon
    cease. The text makes none."""
    from rrt_edge.runtime.decoding.drafting import Drafting

    monkeypatch.setattr(Drafting, "pays", lambda self, last, leaves=False: True)
    monkeypatch.setattr(Drafting, "cutoff", lambda self, rows, sequences=1: 0.0)
    monkeypatch.setattr(Drafting, "reads_text", False)


@pytest.fixture
def picked(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[np.ndarray]]:
    """The logits that each sampler picked its tokens from, by its id: at each place the last, which is no draft's."""
    from rrt_edge.runtime.decoding.sampler import Sampler

    seen: dict[int, list[np.ndarray]] = {}
    pick = Sampler.pick

    def watch(self: Sampler, logits: np.ndarray, history: list[int]) -> int:
        place = len(history) - self._prompt_tokens
        seen.setdefault(id(self), [])[place : place + 1] = [logits.copy()]
        return pick(self, logits, history)

    monkeypatch.setattr(Sampler, "pick", watch)
    return seen


def checkout() -> list[Path]:
    """What packages are made of and every other Python file, relative to the root; what git ignores stays out."""
    if shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS, "*.py"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
        files = [Path(name) for name in listed if name and (ROOT / name).is_file()]
        if files:
            return files
    found = [path for part in PARTS for path in (ROOT / part, *(ROOT / part).rglob("*"))]
    return [path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="session")
def packages(make_once: Callable[..., Path]) -> Path:
    """The folder of the sdist and the wheel that `.ci/package` builds in a copy of the checkout's files."""

    def build(tree: Path) -> None:
        for path in checkout():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path)
        found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", str(tree / ".ci" / "package")]
        done = subprocess.run(command, env={**os.environ, "PATH": found}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (tree / "runtime" / "library" / "demo").exists()

    return make_once("tree", build) / "dist"


@pytest.fixture(scope="session")
def wheel(packages: Path) -> zipfile.ZipFile:
    """Built from the sdist."""
    (built,) = packages.glob("*.whl")
    return zipfile.ZipFile(built)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The largest errors of the families' graphs and models, where their tests ran."""
    errors: dict[str, dict[str, float]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, found in report.user_properties if report.when == "call" else ():
            if name == "family_matrix":
                case, column, error = found
                errors.setdefault(case, {})[column] = error
    if not errors:
        return
    columns = list(dict.fromkeys(column for row in errors.values() for column in row))
    terminalreporter.section("families: largest logit error (must be below 1e-4)")
    terminalreporter.write_line(f"{'':16}" + "".join(f"{column:>12}" for column in columns))
    for case, row in errors.items():
        cells = [f"{row[column]:12.1e}" if column in row else f"{'-':>12}" for column in columns]
        terminalreporter.write_line(f"{case:16}" + "".join(cells))
