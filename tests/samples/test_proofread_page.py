"""The proofreader's page, in headless Chromium, and the endpoint behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.samples.proofreader import LOOP

if TYPE_CHECKING:
    from tests.browser import Page

TEXT = "He go to school every day.\n\nI seen the the dog.\n"
RIGHT = "He goes to school every day.\n\nI saw the dog.\n"
MANY = "\n\n".join(f"{LOOP} It is number {number}." for number in range(3000))


@pytest.fixture(scope="module")
def url(package: ModuleType, proofreader_bundle: Path) -> Iterator[str]:
    """The proofreader's server in a thread of this process."""
    uvicorn = pytest.importorskip("uvicorn")
    from serve import make_app

    ready = threading.Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as bound,
        package.Proofreader.load(proofreader_bundle, "balanced") as proofreader,
    ):
        server = uvicorn.Server(uvicorn.Config(make_app(proofreader, "tiny"), log_level="error"))
        startup = server.startup

        async def start(**options: Any) -> None:
            await startup(**options)
            ready.set()

        server.startup = start
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
        thread.start()
        assert ready.wait(60)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(open_page: Callable[[str], Page], url: str) -> Page:
    opened = open_page(url)
    opened.open()
    return opened


def write(page: Page, text: str) -> None:
    page.js("text.value = arguments[0]; text.dispatchEvent(new Event('input')); text.focus()", text)


def status(page: Page) -> str:
    return page.find("#status").text


def test_the_endpoint_tells_progress_and_then_the_correction(url: str) -> None:
    more = "\nThey like to read in bed.\n"  # which no other test has read before
    answer = httpx.post(f"{url}/proofread", json={"text": TEXT + more}, timeout=300)
    *progress, last = map(json.loads, answer.text.splitlines())
    assert progress[-1] == {"done": 3, "total": 3} and last["edits"] == 3 and last["loops"] == 2
    assert "".join(text for kind, text, _ in last["segments"] if kind != "removed") == RIGHT + more
    assert "".join(text for kind, text, _ in last["segments"] if kind != "inserted") == TEXT + more


def test_what_is_no_request_of_the_page_is_refused(url: str) -> None:
    for content, kind, expected in (
        (json.dumps({"text": TEXT}), "text/plain", 415),
        ("{", "application/json", 400),
        ('{"text": 1}', "application/json", 400),
        ("[]", "application/json", 400),
        ('{"text": "\\ud800"}', "application/json", 400),
        ('"' + "x" * (5 << 20), "application/json", 413),
    ):
        answer = httpx.post(f"{url}/proofread", content=content, headers={"content-type": kind}, timeout=300)
        assert answer.status_code == expected and answer.json()["error"]
    stranger = {"host": "example.org", "content-type": "application/json"}
    assert httpx.post(f"{url}/proofread", content="{}", headers=stranger).status_code == 400


def test_a_reader_who_goes_stops_the_model(url: str) -> None:
    """All of `MANY` would take minutes, and requests take turns."""
    with httpx.stream("POST", f"{url}/proofread", json={"text": MANY}, timeout=300) as answer:
        next(answer.iter_lines())
    assert httpx.post(f"{url}/proofread", json={"text": TEXT}, timeout=300).text.count('"edits": 3') == 1


def test_the_corrected_text_stands_beside_with_changes_and_depths(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    write(page, TEXT)
    page.find("#text").send_keys(Keys.CONTROL + Keys.ENTER)
    page.wait(lambda: status(page).startswith("3 corrections, mean depth 1."))
    shown = "return [...result.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    assert page.js(shown, "del") == ["go", "seen", " the"] and "".join(page.js(shown, "ins")) == "goessaw"
    depths = page.js("return [...result.querySelectorAll('[data-depth]')].map((node) => node.dataset.depth)")
    assert set(depths) == {"1", "2"}
    colours = page.js(
        "return [...result.querySelectorAll('[data-depth]')].map((node) => getComputedStyle(node).backgroundColor)"
    )
    assert len(dict(zip(depths, colours, strict=True))) == len(set(colours)) == 2
    page.find("#shade").click()
    assert page.js("return getComputedStyle(result.querySelector('.token')).backgroundColor") == "rgba(0, 0, 0, 0)"
    page.find("#take").click()
    assert page.js("return text.value") == RIGHT
    assert page.complaints == []


def test_cancelling_by_button_and_by_key(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    for cancel in (lambda: page.find("#cancel").click(), lambda: page.press(Keys.ESCAPE)):
        write(page, MANY)
        page.find("#go").click()
        page.wait(lambda: page.js("return $('progress').value > 0"))
        cancel()
        page.wait(lambda: status(page) == "Cancelled; nothing was changed.")
        assert page.find("#go").is_displayed() and not page.find("#cancel").is_displayed()
    write(page, f"{TEXT}\n{LOOP}")
    page.find("#go").click()
    page.wait(lambda: "Line 5 was left as it was: the model's reply had no end" in status(page))


def test_the_page_works_by_keyboard_on_narrow_screens_and_shows_text_as_text(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.focused == "text"
    page.press("<img src=x onerror=alert(1)> He go to school.")
    stops = []
    for _ in range(7):
        page.press(Keys.TAB)
        stops.append(page.focused)
    assert stops[:4] == ["result", "go", "markdown", "shade"]
    page.find("#text").send_keys(Keys.CONTROL + Keys.ENTER)
    page.wait(lambda: page.js("return result.textContent") and page.find("#go").is_displayed())
    assert page.js("return result.querySelectorAll('img').length") == 0
    assert page.js("return document.documentElement.scrollWidth") == 360


def test_the_chat_is_beside(page: Page, url: str) -> None:
    page.find("header a").click()
    page.wait(lambda: page.driver.title == "tiny \u00b7 rrt-edge")
    assert page.driver.current_url == f"{url}/chat"
