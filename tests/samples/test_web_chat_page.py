"""The browser chat's page: themes, contrast, narrow screens, keyboard, screen readers, Markdown."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import ANSWER, QUESTION, Page

CONTRASTS = """
const pixel = (colour) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const ground = (node) => {
  const found = pixel(getComputedStyle(node).backgroundColor);
  return found[3] || !node.parentElement ? found.slice(0, 3) : ground(node.parentElement);
};
const ink = (node) => pixel(getComputedStyle(node).color).slice(0, 3);
return [...document.querySelectorAll(arguments[0])].map((node) => [ink(node), ground(node)]);
"""


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(colour: list[int]) -> float:
        shares = [value / 255 for value in colour]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_installed_page_is_one_small_file_that_loads_nothing() -> None:
    text = (files("rrt_edge.web_chat") / "index.html").read_text("utf-8")
    assert len(text.encode()) < 48_000
    assert not re.search(r"""(?:src|href|url\(|@import|import)\s*[=(]?\s*["']?(?:https?:)?//""", text)


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page) -> None:
    for dark in (True, False):
        page.emulate_dark(dark)
    page.find("#theme").click()
    assert page.theme == "dark" and page.find("#theme").get_attribute("aria-label") == "Use the light theme"
    page.open()
    assert page.theme == "dark"


@pytest.mark.parametrize("dark", [False, True])
def test_text_keeps_its_contrast_and_depths_differ_in_lightness(page: Page, dark: bool) -> None:
    page.emulate_dark(dark)
    for loops in (2, 3, 6):
        page.js("setLoops(arguments[0]); drawCost()", loops)
        chips = page.js(CONTRASTS, ".chip")
        assert len(chips) == loops and all(contrast(ink, ground) >= 4.5 for ink, ground in chips)
        light = [contrast(ground, [0, 0, 0]) for _, ground in chips]
        assert light == sorted(light, reverse=not dark)
        assert max(light) / min(light) > 2
    page.click("Calibrated")
    page.js("notice('wrong', {'Try again': null}, true)")
    page.find("#input").send_keys("x")
    for selector in ("h1, h2, .empty, #shown, .hint, dt, dd, label", "button, select, #notice span"):
        assert all(contrast(ink, ground) >= 4.5 for ink, ground in page.js(CONTRASTS, selector)), selector


def test_nothing_overflows_a_narrow_screen(page: Page) -> None:
    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.ask(QUESTION)
    page.seed(f"{'x' * 300}\n\n```\n{'y' * 300}\n```")
    overflow = "return [document.documentElement, log].map((one) => one.scrollWidth - one.clientWidth)"
    for shaded in (True, False):
        assert page.find("#shade").is_selected() == shaded and page.js(overflow) == [0, 0]
        assert not page.find("#slider").is_displayed()
        page.find("summary").click()
        assert page.find("#slider").is_displayed() and page.js(overflow) == [0, 0]
        page.find("summary").click()
        page.find("#shade").click()
    page.js("notice(arguments[0], {'Try again': null}, true)", "z" * 300)
    assert page.js(overflow) == [0, 0]


def test_everything_works_from_the_keyboard(page: Page) -> None:
    assert page.focused == "input"
    page.press("What does os.path.join")
    page.press(Keys.ENTER, shift=True)
    page.press("do?", Keys.ENTER)
    page.wait(lambda: page.idle and page.replies)
    assert page.questions == ["What does os.path.join\ndo?"] and page.typed == "" and page.focused == "input"

    def back_to(selector: str) -> None:
        """With Shift and Tab, at most as often as the page has stops."""
        for _ in range(20):
            page.press(Keys.TAB, shift=True)
            if page.js("return document.activeElement.matches(arguments[0])", selector):
                assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        pytest.fail(f"no way back to {selector}")

    back_to("#shade")
    back_to("#policy")
    back_to("#slider")
    page.press(Keys.END)
    assert page.find("#shown").text == "full depth"
    back_to(".below button")
    back_to(".token")
    page.press(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement === document.querySelectorAll('.token')[1]")
    assert page.find("#tip").text == page.driver.switch_to.active_element.get_attribute("data-tip")
    assert page.driver.switch_to.active_element.get_attribute("aria-describedby") == "tip"
    page.press(Keys.ESCAPE)
    assert not page.find("#tip").is_displayed()
    back_to("#log")
    back_to("#new")
    page.press(Keys.ENTER)
    assert page.questions == [] and page.focused == "input"


def test_a_finished_reply_is_announced_once_and_tokens_are_not(page: Page) -> None:
    page.js(
        "window.told = []; const node = $('announcement');"
        "new MutationObserver(() => told.push(node.textContent)).observe(node, {childList: true})"
    )
    page.ask(QUESTION)
    page.wait(lambda: page.js("return told.length"))
    assert page.js("return told") == [f"Reply: {ANSWER}"]
    live = "[aria-live=polite], [aria-live=assertive], [role=alert], [role=status]"
    assert not page.js("return log.closest(arguments[0]) || log.querySelector(arguments[0])", live)
    assert page.find("#log").get_attribute("aria-live") == "off"


def test_what_is_said_stays_text_and_markdown_is_shown_without_shading(page: Page) -> None:
    code = "<img src=x onerror=\"document.title='broken'\">"
    reply = f"# Head\nOne **two** `x*y` ** not bold\n\n- a\n- **b**\n\n3. c\n\n```py\n{code}\n\n  **raw**\n```\n{code}"
    page.seed(reply)
    assert page.replies == [reply] and page.questions == ["<b>bold?</b>"]
    page.find("#shade").click()
    shown = page.js("return [...document.querySelector('.text').children].map((one) => [one.tagName, one.textContent])")
    assert shown == [
        ["P", "Head"],
        ["P", "One two x*y ** not bold"],
        ["UL", "ab"],
        ["OL", "c"],
        ["PRE", f"{code}\n\n  **raw**"],
        ["P", code],
    ]
    inner = page.js("return [...document.querySelectorAll('.text :is(strong, p code)')].map((one) => one.textContent)")
    assert inner == ["Head", "two", "x*y", "b"] and page.js("return document.querySelector('ol').start") == 3
    assert page.js("return document.querySelectorAll('img, .you b').length") == 0
    assert page.driver.title == "pydoc · rrt-edge"
