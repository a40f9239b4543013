"""The browser chat's page, driven in headless Chromium."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

QUESTION, ANSWER = "What does os.path.join do?", "Join two or more pathname components, inserting '/' as needed."
WAIT_S = 60  # for what takes a moment: only a page that hangs comes near it


def chromium() -> webdriver.Chrome:
    """The system's; skips the test where there is none."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: the browser chat is not tested")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for one in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The chat in a tab of its own."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> None:
        self.driver.get(self.url)
        self.wait(lambda: self.driver.title.endswith(" · rrt-edge"))

    def js(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Keys for whatever has the focus."""
        actions = webdriver.ActionChains(self.driver)
        if shift:
            actions.key_down(Keys.SHIFT).send_keys(*keys).key_up(Keys.SHIFT).perform()
        else:
            actions.send_keys(*keys).perform()

    @property
    def complaints(self) -> list[str]:
        """What the browser complains of: errors of scripts, breaches of the content policy, what it could not load."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def metric(self, name: str) -> float:
        """What the server tells of its requests: how many are `running` or `waiting`."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            found = re.search(rf"^rrt_edge_requests_{name} (\S+)", response.read().decode(), re.MULTILINE)
        assert found
        return float(found[1])

    def click(self, text: str) -> None:
        """The visible button with a text; the last of several."""
        buttons = self.driver.find_elements(By.TAG_NAME, "button")
        [one for one in buttons if one.text == text and one.is_displayed()][-1].click()

    def send(self, text: str) -> None:
        self.find("#input").send_keys(text, Keys.ENTER)

    def ask(self, text: str) -> str:
        """Send a message and wait for the whole reply."""
        self.send(text)
        self.wait(lambda: self.idle and self.replies and self.questions[-1] == text)
        return self.replies[-1]

    def slide_to(self, shown: str) -> None:
        slider = self.find("#slider")
        slider.send_keys(Keys.END)
        while self.find("#shown").text != shown:
            assert slider.get_attribute("value") != "0", f"the slider has no {shown}"
            slider.send_keys(Keys.ARROW_LEFT)

    def emulate_dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.wait(lambda: self.theme == scheme["value"])

    @property
    def theme(self) -> str:
        return self.js("return getComputedStyle(document.documentElement).colorScheme")

    @property
    def idle(self) -> bool:
        return self.find("#log").get_attribute("aria-busy") == "false"

    @property
    def questions(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('.you p')].map((one) => one.textContent)")

    @property
    def replies(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('.reply .text')].map((one) => one.textContent)")

    @property
    def depths(self) -> list[int]:
        """At which the last reply's tokens left, as shown."""
        script = "return [...document.querySelectorAll('.reply:last-child .token')].map((one) => +one.dataset.depth)"
        return self.js(script)

    @property
    def typed(self) -> str:
        return self.find("#input").get_property("value")

    @property
    def notice(self) -> str:
        return self.find("#notice span").text if self.find("#notice").is_displayed() else ""

    @property
    def focused(self) -> str:
        return self.driver.switch_to.active_element.get_attribute("id")

    def seed(self, reply: str) -> None:
        """A conversation whose reply is of our choosing, as if it had been kept."""
        told = {
            "role": "assistant",
            "text": reply,
            "tokens": [[reply, 1, [0.5], False, None]],
            "policy": "full",
            "note": "",
        }
        kept = [{"role": "user", "text": "<b>bold?</b>"}, {**told, "cost": None}]
        self.js("store.conversation.set({loops: 2, messages: arguments[0]})", kept)
        self.open()
