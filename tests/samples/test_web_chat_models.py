"""The browser chat of a server with several bundles: one is chosen, loaded, and asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from selenium.webdriver.support.ui import Select

from tests.browser import ANSWER, QUESTION, Page
from tests.serving import serving


def test_a_model_is_chosen_in_the_head(
    demo: Path, bundle: Path, tmp_path: Path, open_page: Callable[[str], Page]
) -> None:
    shutil.copytree(bundle, tmp_path / "another")
    shutil.copytree(demo, tmp_path / "pydoc")
    with serving(f"--models-dir={tmp_path}", "--ui") as served:
        page = open_page(served.url)
        page.open()
        assert page.driver.title == "another · rrt-edge"
        choice = Select(page.find("#name select"))
        assert [option.text for option in choice.options] == ["another", "pydoc"]
        assert page.find("#name select").accessible_name == "Model"
        choice.select_by_visible_text("pydoc")
        page.wait(lambda: page.driver.title == "pydoc · rrt-edge")
        page.slide_to("about 1.20 loops")
        assert page.ask(QUESTION) == ANSWER
        assert page.complaints == []


def test_aliases_are_no_choice(demo: Path, open_page: Callable[[str], Page]) -> None:
    with serving(demo, "--ui", "--name", "pydoc", "--alias", "gpt-4o") as served:
        page = open_page(served.url)
        page.open()
        assert page.find("#name").text == "pydoc" and page.ask(QUESTION)
