"""A browser, the demo's chat in it, a server whose replies do not end, and a proofreader."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CONTEXT, ROOT
from tests.manifests import edit_manifest
from tests.serving import Served, serving

if TYPE_CHECKING:
    from selenium import webdriver

    from tests.browser import Page


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(driver: webdriver.Chrome) -> Iterator[Callable[[str], Page]]:
    """Open a server's page in a new tab, with nothing kept from before."""
    from tests.browser import Page

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


@pytest.fixture
def serve_endless(endless: Path) -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:
        most = [word for name in ("--context", "--max-tokens", "--default-tokens") for word in (name, str(CONTEXT))]
        yield lambda *options: stack.enter_context(serving(endless, "--ui", *most, *options))


CURVE = {0.9: 1.0, 0.9999: 1.07, 0.99999: 1.2, 1.0: 1.7}  # thresholds, and loops that the demo's tokens run at them


@pytest.fixture(scope="session")
def calibrated(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a curve in its manifest, as `rrt-edge calibrate` leaves one."""
    bundle = Path(shutil.copytree(demo, tmp_path_factory.mktemp("calibrated") / "pydoc"))
    curve = [{"threshold": threshold, "agreement": 0.999, "mean_depth": loops} for threshold, loops in CURVE.items()]
    edit_manifest(bundle, lambda fields: fields["gate"].update(curve=curve))
    return bundle


@pytest.fixture(scope="module")
def url(calibrated: Path) -> Iterator[str]:
    with serving(calibrated, "--ui") as served:
        yield served.url


@pytest.fixture
def page(open_page: Callable[[str], Page], url: str) -> Page:
    """The demo's."""
    found = open_page(url)
    found.open()
    return found


@pytest.fixture(scope="session")
def proofreader_bundle(make_once: Callable[..., Path]) -> Path:
    """A tiny model that knows the corrections of `tests.samples.proofreader` by heart."""
    pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")
    from tests.samples.proofreader import write_proofreader

    return make_once("proofreader", write_proofreader)


@pytest.fixture(scope="session")
def package() -> Iterator[ModuleType]:
    """The sample's package, and its programs beside it."""
    sample = str(ROOT / "samples" / "proofread")
    sys.path.insert(0, sample)
    yield __import__("proofread")
    sys.path.remove(sample)


@pytest.fixture(scope="session")
def programs(package: ModuleType) -> Callable[..., SimpleNamespace]:
    """The sample's programs by their names, which import each other as scripts of one folder do."""
    return lambda *names: SimpleNamespace(**{name: import_module(name) for name in names})
