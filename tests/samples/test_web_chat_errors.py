"""The browser chat when something is wrong: one line says what to do, and nothing that was typed is lost."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from selenium.webdriver.common.keys import Keys

from tests.browser import ANSWER, QUESTION, Page
from tests.serving import Served, serving


def test_the_api_key_is_asked_for_in_the_page(demo: Path, open_page: Callable[[str], Page]) -> None:
    with serving(demo, "--ui", "--threads", "1", "--api-key", "secret") as served:
        page = open_page(served.url)
        page.driver.get(served.url)
        page.wait(lambda: page.focused == "key-field")
        page.press("wrong", Keys.ENTER)
        page.wait(lambda: "does not accept" in page.find("#key").text and page.focused == "key-field")
        page.press("secret", Keys.ENTER)
        page.wait(lambda: page.driver.title == "pydoc · rrt-edge")
        assert page.ask(QUESTION) == ANSWER
        page.open()
        assert page.js("return JSON.stringify(localStorage).includes('secret')") is False
        page.js("store.key.set('old')")
        page.send(QUESTION)
        page.wait(lambda: page.focused == "key-field")
        assert page.typed == QUESTION
        page.press("secret", Keys.ENTER)
        page.wait(lambda: page.idle and page.replies == [ANSWER, ANSWER])
        assert page.typed == "" and not page.find("#key").is_displayed()


def test_a_server_that_goes_is_told_and_nothing_is_lost(
    serve_endless: Callable[..., Served], open_page: Callable[[str], Page]
) -> None:
    served = serve_endless()
    page = open_page(served.url)
    page.open()
    page.send("The cat")
    page.wait(lambda: len(page.depths) > 5)
    served.process.kill()
    page.wait(lambda: page.idle)
    assert "No answer from" in page.notice and "cut off" in page.find(".below span").text and page.replies[0]
    kept = page.replies
    page.click("Try again")
    page.wait(lambda: page.idle and "No answer from" in page.notice)
    assert page.replies == kept and page.questions == ["The cat"]
    page.send("The dog")
    page.wait(lambda: page.idle and page.typed == "The dog")
    assert page.questions == ["The cat"] and "Start the server" in page.notice
    served.process.wait()
    serve_endless("--port", str(urlsplit(served.url).port))
    page.click("Try again")
    page.wait(lambda: page.questions[-1] == "The dog" and len(page.depths) > 5)
    assert page.notice == "" and page.typed == ""


def test_a_busy_server_is_told_with_the_time_to_wait(
    serve_endless: Callable[..., Served], open_page: Callable[[str], Page]
) -> None:
    # The budget has room for the keys and values of one such request, the queue for one more.
    url = serve_endless("--kv-budget", "300", "--max-queue", "1").url
    page = open_page(url)
    page.open()
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True})
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(closing(http.client.HTTPConnection(urlsplit(url).netloc)))
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            if page.metric("running") == 0:
                answer.readline()  # the first has begun: the second is to wait
        page.wait(lambda: page.metric("running") == page.metric("waiting") == 1)
        page.send("The cat")
        page.wait(lambda: page.notice)
        assert re.fullmatch(r"The server is busy\. Try again in \d+ s\.", page.notice)
        assert page.typed == "The cat" and page.questions == []
    page.click("Try again")
    page.wait(lambda: page.questions == ["The cat"] and page.depths)


def test_a_full_context_is_told_and_the_message_stays(page: Page) -> None:
    long = "word " * 600
    page.js("setInput(arguments[0])", long)
    page.press(Keys.ENTER)
    page.wait(lambda: page.notice)
    assert "does not fit the model's context of 512 tokens" in page.notice and page.typed == long.strip()
    page.js("setInput('')")
    page.ask(QUESTION)
    page.js("setInput(arguments[0])", long)
    page.press(Keys.ENTER)
    page.wait(lambda: "does not fit" in page.notice)  # nor without what was said before
    assert page.questions == [QUESTION] and page.typed == long.strip()
