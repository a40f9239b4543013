"""The browser chat against a real server: replies, their depths, stop, regenerate, what is kept."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.browser import ANSWER, QUESTION, Page
from tests.manifests import edit_manifest
from tests.serving import Served, serving


def api(url: str, question: str, exit_policy: str) -> dict[str, Any]:
    """The same question, asked without the page."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "exit_policy": exit_policy,
        "return_depths": True,
        "first_loop": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_a_reply_is_the_apis_with_depth_and_gate_of_each_token(page: Page, url: str) -> None:
    page.slide_to("about 1.20 loops")
    assert page.ask(QUESTION) == ANSWER
    expected = api(url, QUESTION, "threshold=0.99999")
    assert expected["choices"][0]["message"]["content"] == ANSWER
    told = [one for one in expected["choices"][0]["rrt_edge"]["tokens"] if one["text"]]
    shown = page.js(
        "return [...document.querySelectorAll('.token')]"
        ".map((one) => [one.textContent, +one.dataset.depth, JSON.parse(one.dataset.gates), one.dataset.tip])"
    )
    assert [one[:2] for one in shown] == [[one["text"], one["depth"]] for one in told]
    assert [one[2] for one in shown] == [pytest.approx(one["gates"], abs=1e-4) for one in told]
    assert all(len(gates) == 1 for _, _, gates, _ in shown)  # there is one loop to leave after
    assert {depth for _, depth, *_ in shown} == {1, 2}
    assert [one["first_loop"]["text"] for one in told] == [one["text"] for one in told]
    for _, depth, _, tip in shown:
        said = r"\nloop 1 would have said the same" if depth == 2 else ""
        assert re.fullmatch(rf"left after loop {depth} of 2 · gate after loop 1: [a-z0-9. ]+{said}", tip)
    statistics = expected["rrt_edge"]
    assert page.find("#depth").text == f"{statistics['mean_depth']:.2f} of 2"
    assert page.find("#saved").text == f"{100 * (1 - statistics['block_rows_per_token'] / 2):.0f} %"
    assert float(page.find("#speed").text) > 0
    ActionChains(page.driver).move_to_element(page.find(".token")).perform()
    assert page.find("#tip").text == shown[0][3]
    assert page.complaints == []  # nor a breach of the CSP


def test_the_figures_while_streaming_are_those_the_server_tells_in_the_end(page: Page) -> None:
    for shown in ("first loop only", "about 1.07 loops", "about 1.20 loops", "full depth"):
        page.slide_to(shown)
        page.ask(QUESTION)
        own, told = page.js("const last = messages.at(-1); return [cost({...last, cost: null}), last.cost]")
        assert own["depth"] == pytest.approx(told["depth"], abs=1e-4)
        if told["fallen"]:  # rows of drafts that did not stand are the server's to count
            assert own["rows"] < told["rows"]
        else:
            assert own["rows"] == pytest.approx(told["rows"], abs=1e-4)
        page.click("New conversation")


def test_the_slider_decides_at_which_depth_tokens_leave(page: Page) -> None:
    assert page.find("#shown").text == "about 1.00 loops · calibrated"  # the server's default
    assert "99.9 % of the tokens were full depth's" in page.find("#promise").text
    found = {}
    for shown in ("first loop only", "about 1.20 loops", "full depth"):
        page.slide_to(shown)
        page.ask(QUESTION)
        found[shown] = set(page.depths)
    assert found == {"first loop only": {1}, "about 1.20 loops": {1, 2}, "full depth": {2}}
    page.click("First loop")
    assert page.find("#slider").get_attribute("aria-valuetext") == "first loop only"
    page.js("select.value = 'full'; select.dispatchEvent(new Event('change'))")
    assert page.ask(QUESTION) and set(page.depths) == {2} and page.find("#shown").text == "full depth"


def test_an_untrained_gates_slider_sets_the_depth(bundle: Path, open_page: Callable[[str], Page]) -> None:
    with serving(bundle, "--ui", "--threads", "1", "--max-tokens", "5") as served:
        page = open_page(served.url)
        page.open()
        for shown, depth in (("first loop only", 1), ("depth 2", 2), ("full depth", 3)):
            page.slide_to(shown)
            page.ask("The cat")
            assert set(page.depths) == {depth}


def test_operating_points_are_named_and_the_servers_default_is_kept(
    demo: Path, tmp_path: Path, open_page: Callable[[str], Page]
) -> None:
    bundle = Path(shutil.copytree(demo, tmp_path / "points"))
    edit_manifest(bundle, lambda fields: fields["gate"].update(threshold=0.93, points={"fast": 0.7, "balanced": 0.93}))
    options = "return [...select.options].map((one) => one.textContent)"
    policies = {"balanced": "calibrated · threshold 0.93", "fast": "fast · threshold 0.7"}
    policies["mean-depth=1.5"] = "about 1.50 loops"  # without a curve the slider steers
    for policy, shown in policies.items():
        with serving(bundle, "--ui", "--threads", "1", "--exit-policy", policy) as served:
            page = open_page(served.url)
            page.open()
            assert page.find("#shown").text == shown and (shown in page.js(options)) == (" · " in shown)
            told = page.ask(QUESTION)
            assert told == ANSWER and shown in page.find(".below span").text
            assert page.js("return messages.at(-1).cost.depth") == pytest.approx(
                api(served.url, QUESTION, policy)["rrt_edge"]["mean_depth"], abs=0.1
            )


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_keeps_what_came_and_frees_the_server(
    how: str, serve_endless: Callable[..., Served], open_page: Callable[[str], Page]
) -> None:
    page = open_page(serve_endless().url)
    page.open()
    page.send("The cat")
    page.wait(lambda: len(page.depths) > 20)
    assert not page.idle and float(page.find("#speed").text) > 0
    if how == "button":
        page.click("Stop")
    else:
        page.press(Keys.ESCAPE)
    page.wait(lambda: page.idle)
    assert "stopped" in page.find(".below span").text and page.focused == "input"
    kept = page.replies

    page.wait(lambda: page.metric("running") == 0)
    assert page.replies == kept and kept[0]


def test_regenerate_asks_for_the_last_reply_again_at_the_threshold_of_now(page: Page) -> None:
    page.slide_to("first loop only")
    page.ask("What does heapq.heappush do?")
    page.ask(QUESTION)
    page.slide_to("full depth")
    page.click("Regenerate")
    page.wait(lambda: page.idle and set(page.depths) == {2})
    assert len(page.questions) == len(page.replies) == 2 and page.replies[1] == ANSWER and page.focused == "input"


def test_a_reload_keeps_the_conversation_the_draft_and_the_choices(page: Page) -> None:
    page.slide_to("about 1.20 loops")
    page.ask(QUESTION)
    depths = page.depths
    page.find("#input").send_keys("and then")
    page.open()
    assert (page.questions, page.replies, page.depths, page.typed) == ([QUESTION], [ANSWER], depths, "and then")
    assert page.find("#shown").text == "about 1.20 loops"
    page.click("New conversation")
    assert page.questions == page.replies == []
    page.click("Undo")
    assert (page.questions, page.replies) == ([QUESTION], [ANSWER])
    page.click("New conversation")
    page.open()
    assert page.questions == page.replies == []


def test_copy_takes_the_reply_as_it_was_written(page: Page) -> None:
    page.seed("One **two**\n\n- three")
    page.find("#shade").click()
    page.click("Copy")
    page.wait(lambda: "Copied" in page.find(".below button").text)
    page.find("#input").send_keys(Keys.CONTROL, "v")
    page.wait(lambda: page.typed == "One **two**\n\n- three")


def test_a_thought_is_folded_above_the_answer(thinker: Path, open_page: Callable[[str], Page]) -> None:
    from tests.thinker import ANSWER as SAID
    from tests.thinker import THOUGHT

    with serving(thinker, "--ui", "--threads", "1") as served:
        page = open_page(served.url)
        page.open()
        assert page.ask("The cat") == SAID
        folded = page.find("details.thought")
        assert folded.is_displayed() and folded.get_attribute("open") is None
        assert not page.find(".thought p").is_displayed()
        page.find(".thought summary").click()
        assert page.find(".thought p").text == THOUGHT
        shaded = "return [...document.querySelectorAll('.token')].map((one) => one.textContent).join('')"
        assert page.js(shaded) == SAID and "after loop 1 of 3" not in page.find(".token").get_attribute("data-tip")
        page.open()  # what is kept has both
        assert page.replies == [SAID] and page.find(".thought p").get_attribute("textContent") == THOUGHT
        assert page.ask("The dog") == SAID and len(page.replies) == 2
        page.find("#shade").click()
        assert page.replies == [SAID, SAID]
        page.seed("No thought")
        assert not page.find("details.thought").is_displayed()


def test_a_click_on_an_example_asks_it(page: Page) -> None:
    examples = page.js("return [...document.querySelectorAll('.examples button')].map((one) => one.textContent)")
    assert QUESTION in examples and len(examples) == 4
    page.click(QUESTION)
    page.wait(lambda: page.idle and page.replies)
    assert (page.questions, page.replies, page.typed) == ([QUESTION], [ANSWER], "")


def test_the_first_loops_reply_comes_beside_full_depths(page: Page, url: str) -> None:
    """Behind a question that the demo does not know, the two part."""
    strange = "How do I join paths with asyncio?"
    page.find("#beside").click()
    for question in (QUESTION, strange):
        page.send(question)
        page.wait(lambda asked=question: page.idle and page.questions[-1] == asked and len(page.replies) % 2 == 0)
        replies = [api(url, question, policy)["choices"][0]["message"]["content"] for policy in ("depth=1", "full")]
        script = "return [...log.lastElementChild.querySelectorAll('.text')].map((one) => one.textContent)"
        assert page.js(script) == replies
        parted = page.driver.find_elements("css selector", ".reply:last-child .parted")
        below = page.driver.find_elements("css selector", ".below span")[-1].text
        assert len(parted) == (0 if replies[0] == replies[1] else 2)
        assert ("the same, word for word" in below) == (replies[0] == replies[1])
        page.click("New conversation")


def test_the_system_prompt_and_the_temperature_are_sent_and_kept(page: Page) -> None:
    page.js(
        "window.sent = []; const fetched = window.fetch;"
        "window.fetch = (path, options) => { sent.push(JSON.parse(options.body)); return fetched(path, options); }"
    )
    page.ask(QUESTION)
    page.find("#settings summary").click()
    page.find("#system").send_keys("Be brief.")
    page.find("#temperature").send_keys("0.7")
    page.send(QUESTION)
    page.wait(lambda: page.notice)
    assert "knows the roles user and assistant, not system" in page.notice  # the demo's template
    plain, other = page.js("return sent")
    assert "temperature" not in plain and [message["role"] for message in plain["messages"]] == ["user"]
    assert other["temperature"] == 0.7 and other["messages"][0] == {"role": "system", "content": "Be brief."}
    page.open()
    assert page.find("#system").get_property("value") == "Be brief." and page.find("#settings").get_attribute("open")


def test_the_oldest_messages_make_room_where_the_context_is_full(page: Page) -> None:
    for number in range(6):  # of 512 tokens
        page.ask(f"What does os.path.join do? {'again ' * 60}{number}")
        assert page.notice == "" and len(page.replies) == number + 1
    below = page.driver.find_elements("css selector", ".below span")
    left = re.search(r"the first (\d+) messages no longer fitted and were left out", below[-1].text)
    assert left and int(left[1]) % 2 == 0 and "left out" not in below[0].text
