"""What people type first: any prompt, sampling in any form, and mistakes that say what was meant."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

import rrt_edge
import rrt_edge.exporters
import rrt_edge.runtime
from rrt_edge.runtime import (
    BadInputError,
    ContextFullError,
    Engine,
    ExitPolicy,
    Generation,
    Grammar,
    Model,
    Prompt,
    ReplyOptions,
    Sampling,
    SamplingFields,
    Stream,
    TextModel,
    Token,
)

QUESTION = "The cat"
CHAT = [{"role": "user", "content": QUESTION}]
FEW = Sampling(max_tokens=6)
Way = Callable[..., list[int]]


def ids(tokens: Any) -> list[int]:
    return [token.id for token in tokens]


def engine_reply(model: Model, *arguments: Any, **options: Any) -> list[int]:
    engine = Engine(model)
    request = engine.submit(*arguments, **options)
    list(engine.run())
    return ids(request.tokens)


WAYS: dict[str, Way] = {
    "stream": lambda model, *given, **options: ids(model.stream(*given, **options)),
    "generate": lambda model, *given, **options: ids(model.generate(*given, **options).tokens),
    "agenerate": lambda model, *given, **options: ids(asyncio.run(model.agenerate(*given, **options)).tokens),
    "choices": lambda model, *given, **options: ids(model.choices(*given, **options)[0].tokens),
    "session": lambda model, *given, **options: ids(model.session().generate(*given, **options).tokens),
    "session choices": lambda model, *given, **options: ids(model.session().choices(*given, **options)[0].tokens),
    "engine": engine_reply,
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def test_a_text_is_what_a_user_says_and_raw_goes_on_from_it(model: Model, way: Way) -> None:
    rendered = model.tokenizer.encode(model.template.render(CHAT), add_special_tokens=False).ids
    chat, plain = way(model, rendered, FEW), way(model, model.tokenizer.encode(QUESTION).ids, FEW)
    assert chat != plain
    assert way(model, QUESTION, FEW) == way(model, CHAT, FEW) == way(model, tuple(CHAT), FEW) == chat
    assert way(model, QUESTION, FEW, raw=True) == way(model, model.encode(QUESTION), FEW) == plain


def test_sampling_comes_in_any_form(model: Model, way: Way) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 7}
    expected = way(model, [20, 30], model.sampling(**fields))
    assert expected != way(model, [20, 30], model.sampling(max_tokens=7))
    for given, options in (
        ((fields,), {}),
        ((), fields),
        ((), {"sampling": fields}),
        (({"seed": 3, "max_tokens": 40},), {"temperature": 1.5, "max_tokens": 7}),
        ((Sampling(temperature=1.5, seed=9, max_tokens=7),), {"seed": 3}),
    ):
        assert way(model, [20, 30], *given, **options) == expected, (given, options)


def test_one_stop_text_or_a_list_is_what_a_tuple_is(model: Model) -> None:
    whole = model.generate(QUESTION, max_tokens=40).text
    stop = whole[6:9]
    for given in (stop, [stop], (stop,), ["\0", stop]):
        assert model.generate(QUESTION, max_tokens=40, stop=given).text == whole[: whole.index(stop)]
    assert Sampling(stop="a", stop_ids=3) == Sampling(stop=["a"], stop_ids=[3]) == Sampling(stop=("a",), stop_ids=(3,))


def test_a_bundle_without_a_template_goes_on_from_texts(bundle: Path, tmp_path: Path) -> None:
    import shutil

    plain = Path(shutil.copytree(bundle, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    from tests.manifests import edit_manifest

    edit_manifest(plain, lambda manifest: manifest["files"].pop("chat_template.jinja"))
    with Model.load(plain) as without:
        expected = ids(without.stream(without.encode(QUESTION), FEW))
        assert ids(without.stream(QUESTION, FEW)) == ids(without.stream(QUESTION, FEW, raw=True)) == expected
        with pytest.raises(BadInputError, match="no chat template"):
            without.stream(CHAT)
        with pytest.raises(BadInputError, match="chat_template_kwargs: goes with a chat template"):
            without.stream(QUESTION, chat_template_kwargs={"a": 1})


def test_agenerate_leaves_the_loop_free_and_ends_with_its_task(model: Model) -> None:
    async def both() -> tuple[Generation, int]:
        task, turns = asyncio.ensure_future(model.agenerate(QUESTION, max_tokens=40, min_tokens=40)), 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return task.result(), turns

    generation, turns = asyncio.run(both())
    assert ids(generation.tokens) == ids(model.stream(QUESTION, max_tokens=40, min_tokens=40)) and turns > 40

    async def cancelled() -> str:
        session = model.session()
        task = asyncio.ensure_future(session.agenerate(QUESTION, max_tokens=400, min_tokens=400))
        while len(session.ids) < 20:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return session.finish_reason

    assert asyncio.run(cancelled()) == "cancelled"


def test_the_context_of_a_chat_is_kept_by_all_that_takes_messages(bundle: Path) -> None:
    long = [{"role": "user", "content": "cat " * 70}, {"role": "assistant", "content": "dog"}, *CHAT]
    with Model.load(bundle, context=64) as small:
        expected = ids(small.stream(small.encode_chat(CHAT), FEW))
        with pytest.raises(ContextFullError):
            small.generate(long)
        assert ids(small.generate(long, FEW, context_full="truncate-left").tokens) == expected
        assert engine_reply(small, long, FEW, context_full="truncate-left") == expected
        with pytest.raises(BadInputError, match="context-full shift: is for sessions"):
            Engine(small).submit(long, context_full="shift")


class Answer(BaseModel):
    sure: bool


MISTAKES: dict[str, tuple[Callable[[Model], object], str]] = {
    "Model": (lambda model: Model("bundle"), r"Model\.load\('bundle'\)"),  # type: ignore[arg-type]
    "Model with options": (lambda model: Model("bundle", threads=2), r"Model\.load\('bundle', threads=...\)"),
    "load": (lambda model: Model.load("bundle", contxt=5), "contxt: Model.load takes .* did you mean context"),  # type: ignore[call-arg]
    "a text to chat": (
        lambda model: model.chat("Hi"),
        r"\[{\"role\": \"user\", \"content\": 'Hi'}\].* generate and stream",
    ),
    "a text to encode_chat": (lambda model: model.encode_chat("Hi"), "must be a list of messages"),  # type: ignore[arg-type]
    "one message to chat": (lambda model: model.chat(CHAT[0]), r"not one alone; give \[{"),  # type: ignore[arg-type]
    "one message": (lambda model: model.generate(CHAT[0]), r"one message goes into a list"),  # type: ignore[arg-type]
    "texts": (lambda model: model.generate(["a", "b"]), "is a list of texts; give one at a time"),  # type: ignore[arg-type]
    "bytes": (lambda model: model.generate(b"Hi"), "not bytes; decode it"),
    "a number": (lambda model: model.generate(5), "must be a text, messages or token ids"),  # type: ignore[arg-type]
    "nothing": (lambda model: model.generate(None), "must be a text, messages or token ids"),  # type: ignore[arg-type]
    "messages raw": (lambda model: model.generate(CHAT, raw=True), "raw: is for texts"),
    "ids with tools": (lambda model: model.generate([5], tools=[{}]), "tools: goes with a chat template"),
    "a keyword": (lambda model: model.generate("Hi", max_token=5), "max_token: .* did you mean max_tokens"),  # type: ignore[call-arg]
    "transformers' word": (lambda model: model.generate("Hi", max_new_tokens=5), "did you mean max_tokens"),  # type: ignore[call-arg]
    "a policy": (lambda model: model.generate("Hi", exit_polcy="full"), "did you mean exit_policy"),  # type: ignore[call-arg]
    "a stranger": (lambda model: model.generate("Hi", zzz=5), "zzz: .* choose from .*context_full.*, top_p"),  # type: ignore[call-arg]
    "a key": (lambda model: model.generate("Hi", {"temprature": 1}), "did you mean temperature"),  # type: ignore[typeddict-unknown-key]
    "a beginning": (lambda model: model.generate("Hi", temp=1), "did you mean temperature"),  # type: ignore[call-arg]
    "a stop of numbers": (lambda model: model.generate("Hi", stop=5), "stop 5: must be a text, or several, of 1 to"),  # type: ignore[arg-type]
    "a field": (lambda model: Sampling(max_token=5), "Sampling takes .* did you mean max_tokens"),  # type: ignore[call-arg]
    "a field of the model's": (lambda model: model.sampling(sed=5), "Sampling takes .* did you mean seed"),  # type: ignore[call-arg]
    "a field of a policy": (lambda model: ExitPolicy(treshold=0.5), "did you mean threshold"),  # type: ignore[call-arg]
    "an engine's": (lambda model: Engine(model, prompt_row=5), "Engine takes .* did you mean prompt_rows"),  # type: ignore[call-arg]
    "a bundle to an engine": (lambda model: Engine("bundle"), "must be a Model; Model.load makes one"),  # type: ignore[arg-type]
    "a policy as sampling": (lambda model: model.generate("Hi", "full"), "given as exit_policy="),  # type: ignore[arg-type]
    "a number as sampling": (lambda model: model.generate("Hi", 20), "sampling 20: must be a Sampling or a mapping"),  # type: ignore[arg-type]
    "a schema": (lambda model: Sampling(grammar={"type": "object"}), r"Grammar\.json_schema\(schema\)"),  # type: ignore[arg-type]
    "a pattern": (lambda model: model.generate("Hi", grammar="[0-9]"), r"Grammar\.regex\(pattern\)"),  # type: ignore[arg-type]
    "a class": (lambda model: Grammar.json_schema(Answer), r"Grammar\.json_schema\(Answer\.model_json_schema\(\)\)"),  # type: ignore[arg-type]
    "a value": (lambda model: model.generate("Hi", temperature="hot"), "temperature 'hot': must be a number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_say_what_was_meant(model: Model, mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(BadInputError, match=message):
        make(model)


def test_an_error_inside_is_not_taken_for_a_misspelt_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'bundle'"):
        Model.load()  # type: ignore[call-arg]


def test_what_is_printed_tells_what_it_is(bundle: Path) -> None:
    model = Model.load(bundle, context=100)
    session, engine = model.session(), Engine(model)
    assert repr(model) == f"Model({str(bundle)!r}, llama, loops=3, context=100, device='cpu', kv_rule='exact')"
    assert repr(session) == "Session(tokens held: 0, finish_reason='', kv_rule='exact')"
    stream = session.stream([20, 30], max_tokens=3)
    token = next(stream)
    assert repr(stream) == f"Stream(tokens so far: 1, text={token.text!r})"
    assert repr(session).startswith("Session(tokens held: 2, a reply under way")
    generation = model.generate([20, 30], max_tokens=3)
    assert repr(generation) == f"Generation(text={generation.text!r}, finish_reason='length', tokens: 3)"
    request = engine.submit([20, 30])
    assert repr(request) == "Request(1, tokens so far: 0, not ended, text='')"
    assert repr(engine) == "Engine(running: 0, waiting: 1, kv_rule='exact')"
    assert repr(model.manifest).startswith("Manifest(llama, loops=3, vocabulary=300, context_length=512, bits=32")
    assert repr(Sampling(max_tokens=5, stop="a")) == "Sampling(max_tokens=5, stop=('a',))"
    assert repr(ExitPolicy(threshold=0.5)) == "ExitPolicy(threshold=0.5)" and repr(ExitPolicy()) == "ExitPolicy()"
    assert eval(repr(Sampling(top_k=3))) == Sampling(top_k=3)
    model.close()
    assert repr(model).endswith(", closed)")


def test_insides_are_private(model: Model) -> None:
    """Programs see what the reference lists, and of the protocols nothing else."""
    session = model.session()
    shown = {name for name in dir(model) if not name.startswith("_")}
    assert shown == {
        "load", "close", "session", "load_session", "stream", "chat", "generate", "agenerate", "choices",
        "sampling", "policy", "encode", "encode_chat",
        "manifest", "tokenizer", "template", "context", "device", "loops", "kv_rule", "reproducible",
    }  # fmt: skip
    assert {name for name in dir(session) if not name.startswith("_")} == {
        "stream", "chat", "generate", "agenerate", "choices", "logits", "fork", "rewind", "save",
        "ids", "finish_reason", "stats", "kv_rule",
    }  # fmt: skip
    stream = session.stream([5])
    assert {name for name in dir(stream) if not name.startswith("_")} == {
        "cancel", "close", "generation", "text", "thought",
    }  # fmt: skip


def test_the_public_names_are_few_and_there() -> None:
    packages = (rrt_edge, rrt_edge.runtime, rrt_edge.exporters)
    names = {name for package in packages for name in package.__all__}
    assert len(names) <= 40
    for package in packages:
        assert all(getattr(package, name) is not None for name in package.__all__)


def test_sampling_fields_are_those_of_sampling() -> None:
    ours, theirs = get_type_hints(SamplingFields), get_type_hints(Sampling)
    wider = {"stop", "stop_ids"}  # one alone and lists are taken too
    fields = {field.name for field in dataclasses.fields(Sampling)}
    assert ours.keys() == fields and not fields & (get_type_hints(ReplyOptions).keys() - fields)
    assert {name: ours[name] for name in fields - wider} == {name: theirs[name] for name in fields - wider}


class Fake(TextModel):
    """What a program's own tests may put in the place of a model."""

    def stream(self, prompt: Prompt, sampling: Any = None, exit_policy: Any = None, **options: Any) -> Stream:
        return FakeStream([Token("Hello", 1, 1, 1.0), Token(" you", 2, 1, 1.0)])


class FakeStream:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = iter(tokens)
        self.text = self.thought = ""

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> Token:
        token = next(self._tokens)
        self.text += token.text
        return token

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Token:
        for token in self:
            return token
        raise StopAsyncIteration

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    def close(self) -> None: ...

    def cancel(self) -> None: ...

    @property
    def generation(self) -> Any:
        return self.text


def test_the_protocols_are_those_of_the_real_ones_and_can_be_stood_in_for(model: Model) -> None:
    assert isinstance(model, TextModel) and isinstance(model.session(), TextModel) and isinstance(Fake(), TextModel)
    assert not isinstance(Engine(model), TextModel)
    assert Fake().generate("Hi") == asyncio.run(Fake().agenerate("Hi")) == "Hello you"
    assert "".join(token.text for token in Fake().chat(CHAT)) == "Hello you"
