"""A browser, the demo's chat in it, and a server whose replies do not end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver

import rrt_edge
from rrt_edge.exporters import export
from tests.browser import Page, chromium
from tests.serving import Served, serving

ROOT = Path(__file__).resolve().parent.parent.parent
CONTEXT = 65536


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(driver: webdriver.Chrome) -> Iterator[Callable[[str], Page]]:
    """Open a server's page in a new tab, with nothing kept from before."""
    before = driver.current_window_handle

    def start(url: str) -> Page:
        driver.switch_to.new_window("tab")
        driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "local_storage"})
        size = {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get_log("browser")
        return Page(driver, url)

    yield start
    for handle in driver.window_handles:
        if handle != before:
            driver.switch_to.window(handle)
            driver.close()
    driver.switch_to.window(before)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("demo") / "pydoc"
    rrt_edge.export(ROOT / "samples" / "pydoc" / "recursive", bundle)
    return bundle


@pytest.fixture(scope="session")
def endless(make_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose replies nothing ends but a context of 65,536 tokens."""
    folder = tmp_path_factory.mktemp("endless")
    rrt_edge.convert(make_source(max_position_embeddings=CONTEXT), folder / "recursive", loops=3, rank=4)
    export(folder / "recursive", folder / "endless", bits=32)
    manifest = json.loads((folder / "endless" / "manifest.json").read_text("utf-8"))
    manifest["eos_token_ids"] = []
    (folder / "endless" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder / "endless"


@pytest.fixture
def serve_endless(endless: Path) -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:
        most = ("--ui", "--threads", "1", "--context", str(CONTEXT), "--max-tokens", str(CONTEXT))
        yield lambda *options: stack.enter_context(serving(endless, *most, *options))


@pytest.fixture(scope="module")
def url(demo: Path) -> Iterator[str]:
    with serving(demo, "--ui", "--threads", "1") as served:
        yield served.url


@pytest.fixture
def page(open_page: Callable[[str], Page], url: str) -> Page:
    """The demo's."""
    found = open_page(url)
    found.open()
    return found
