"""A window in the terminal that stays awake while the model talks: `pip install textual`.

    python samples/embed/window.py BUNDLE

The reply comes through `async for`, so that keys, scrolling and the clock go on; Escape stops it.
"""

import asyncio
import sys
from datetime import datetime

from textual import work
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Footer, Header, Input, Static

from rrt_edge.runtime import Model, RRTEdgeError


class Window(App[None]):
    TITLE = "rrt-edge"
    BINDINGS = [("escape", "stop", "Stop the reply"), ("ctrl+q", "quit", "Quit")]  # noqa: RUF012

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.session = model, model.session()
        self.sampling = model.sampling(max_tokens=200)  # the rest as the bundle's makers chose
        self.messages: list[dict[str, str]] = []

    def compose(self) -> ComposeResult:
        yield Header()
        yield VerticalScroll(id="talk")
        yield Input(placeholder="Ask something", id="question")
        yield Static(id="clock")
        yield Footer()

    def on_mount(self) -> None:
        self.set_interval(0.1, self.tick)
        self.query_one("#question").focus()

    def tick(self) -> None:
        self.query_one("#clock", Static).update(f"{datetime.now():%H:%M:%S}")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            event.input.clear()
            self.answer(event.value.strip())

    @work(exclusive=True)  # a new question ends the reply to the one before
    async def answer(self, question: str) -> None:
        talk = self.query_one("#talk", VerticalScroll)
        shown = Static(markup=False)
        await talk.mount(Static(f"> {question}", markup=False), shown)
        asked = [*self.messages, {"role": "user", "content": question}]
        reply = ""
        try:
            async with self.session.stream(asked, self.sampling) as stream:
                async for token in stream:
                    reply += token.text
                    shown.update(reply)
                    talk.scroll_end(animate=False)
        except asyncio.CancelledError:
            shown.update(f"{reply} [stopped]")
            raise
        except RRTEdgeError as error:
            shown.update(f"error: {error}")
            return
        finally:
            self.messages = [*asked, {"role": "assistant", "content": reply}]

    def action_stop(self) -> None:
        self.workers.cancel_all()


if __name__ == "__main__":
    with Model.load(sys.argv[1]) as loaded:
        Window(loaded).run()
