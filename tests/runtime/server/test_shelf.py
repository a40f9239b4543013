"""Several bundles in one server: loaded when a request names them, unloaded when nobody asks or memory is short."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from rrt_edge.runtime import BundleError, Model
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.library.store import bundles_in
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.shelf import SHARE, ManyBundles
from tests.serving import serving_here

BODY = {"prompt": [2, 3], "max_tokens": 3}


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        shutil.copytree(bundle, tmp_path / "bundles" / name)
    (tmp_path / "bundles" / "notes").mkdir()
    return tmp_path / "bundles"


def shelf(folder: Path, idle: float = 0, available: Callable[[], int] = lambda: 1 << 40) -> ManyBundles:
    options = ServerOptions("", most_tokens=100_000)
    return ManyBundles(
        lambda: bundles_in(folder), lambda path: Model.load(path, device="cpu"), options, idle, available
    )


def names(bundles: ManyBundles) -> list[str]:
    return [served.options.name for served in bundles.loaded()]


def test_a_bundle_is_loaded_when_it_is_named(folder: Path) -> None:
    bundles = shelf(folder)
    with serving_here(bundles) as here:
        listed = here.client.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["one", "three", "two"]
        assert [one["rrt_edge"]["loaded"] for one in listed] == [False] * 3
        assert listed[0]["rrt_edge"]["loops"] == 3 and listed[0]["rrt_edge"]["chat"] and names(bundles) == []
        whole = here.post({"model": "two", **BODY}).json()
        assert whole["model"] == "two" and names(bundles) == ["two"]
        assert here.post({"model": "one:latest", **BODY}).json()["choices"] == whole["choices"]
        loaded = here.client.get("/v1/models/one").json()["rrt_edge"]
        assert loaded["loaded"] and loaded["max_tokens"] == 100_000
        assert [one["name"] for one in here.client.get("/api/ps").json()["models"]] == ["one:latest", "two:latest"]
        assert len(here.client.get("/api/tags").json()["models"]) == 3
        assert here.client.post("/api/show", json={"model": "three"}).json()["capabilities"] == ["completion"]
        assert here.client.get("/health").json() == {"status": "ok"}
        shutil.copytree(folder / "one", folder / "later")
        assert here.post({"model": "later", **BODY}).status_code == 200
    assert names(bundles) == []


def test_what_is_not_there_or_damaged_is_told(folder: Path) -> None:
    (folder / "two" / "model.onnx.data").write_bytes(b"")
    (folder / "three" / "manifest.json").write_text("{}")
    with serving_here(shelf(folder)) as here:
        other = here.post({"model": "other", **BODY})
        assert other.status_code == 404 and "this server has one, three, two" in other.json()["error"]["message"]
        none = here.post(BODY)
        assert none.status_code == 400 and "must name one of the models here" in none.json()["error"]["message"]
        damaged = here.post({"model": "two", **BODY})
        assert damaged.status_code >= 400 and "model.onnx.data" in damaged.json()["error"]["message"]
        assert "manifest.json" in here.post({"model": "three", **BODY}).json()["error"]["message"]
        assert [one["id"] for one in here.client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert here.post({"model": "one", **BODY}).status_code == 200


def test_ollamas_clients_load_and_unload(folder: Path) -> None:
    bundles = shelf(folder)
    with serving_here(bundles) as here:

        def ask(**fields: Any) -> str:
            return str(here.client.post("/api/generate", json={"model": "one", **fields}).json()["done_reason"])

        assert ask(keep_alive=0) == "unload" and names(bundles) == []
        assert ask() == "load" and names(bundles) == ["one"]
        assert ask(keep_alive=0) == "unload" and names(bundles) == []


def test_what_nobody_asks_is_unloaded(folder: Path) -> None:
    bundles = shelf(folder, idle=0.2)
    with serving_here(bundles) as here:
        assert here.post({"model": "one", **BODY}).status_code == 200
        while bundles.loaded():
            time.sleep(0.02)
        assert here.post({"model": "one", **BODY}).status_code == 200


def test_a_bundle_that_is_used_stays(folder: Path, endless: Path) -> None:
    shutil.copytree(endless, folder / "endless")
    bundles = shelf(folder, idle=0.1)
    with serving_here(bundles) as here:
        body = {"model": "endless", "prompt": [2], "max_tokens": 60_000, "stream": True}
        with here.client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert here.post({"model": "one", **BODY}).status_code == 200
            while "one" in names(bundles):
                next(lines)
            assert names(bundles) == ["endless"] and here.running == 1
        while bundles.loaded():
            time.sleep(0.02)


def test_the_longest_unused_makes_room(folder: Path) -> None:
    needed = SHARE * sum(file.bytes for file in Manifest.read(folder / "one").files.values())

    async def walk() -> None:
        bundles = shelf(folder, available=lambda: int(needed * (2.5 - len(bundles.loaded()))))
        for name, expected in (
            ("one", ["one"]), ("two", ["one", "two"]), ("one", ["one", "two"]), ("three", ["one", "three"])
        ):  # fmt: skip
            async with bundles.using(name):
                assert sorted(names(bundles)) == expected
        async with bundles.using("one"), bundles.using("three"):
            with pytest.raises(
                ApiError, match=r"model 'two': needs about \d+ MiB of memory, and \d+ MiB are available"
            ):
                async with bundles.using("two"):
                    pass
        async with bundles.using("two"):
            assert sorted(names(bundles)) == ["one", "two"]
        await bundles.stop()
        assert names(bundles) == []

    asyncio.run(walk())


def test_two_that_ask_at_once_get_one(folder: Path) -> None:
    loaded = []

    def load(path: Path) -> Model:
        loaded.append(path)
        return Model.load(path, device="cpu")

    async def use(bundles: ManyBundles) -> object:
        async with bundles.using("one") as served:
            return served

    async def walk() -> None:
        bundles = ManyBundles(lambda: bundles_in(folder), load, ServerOptions(""), 0)
        first, second = await asyncio.gather(use(bundles), use(bundles))
        assert first is second and len(loaded) == 1
        await bundles.stop()

    asyncio.run(walk())


def test_who_goes_while_a_bundle_is_loaded_leaves_it_to_the_next(folder: Path) -> None:
    may_load = threading.Event()

    def load(path: Path) -> Model:
        may_load.wait()
        return Model.load(path, device="cpu")

    async def use(bundles: ManyBundles) -> None:
        async with bundles.using("one"):
            pass

    async def walk() -> None:
        bundles = ManyBundles(lambda: bundles_in(folder), load, ServerOptions(""), 0)
        asked = asyncio.create_task(use(bundles))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert asked.cancelled() and names(bundles) == []
        may_load.set()
        await use(bundles)
        assert names(bundles) == ["one"]
        await bundles.unload("one")  # nobody is left who uses it
        assert names(bundles) == []
        may_load.clear()
        asked = asyncio.create_task(use(bundles))
        await asyncio.sleep(0.05)
        asked.cancel()
        threading.Timer(0.1, may_load.set).start()
        await bundles.stop()
        assert names(bundles) == []

    asyncio.run(walk())


def test_a_load_that_fails_leaves_nothing(folder: Path) -> None:
    (folder / "one" / "model.onnx").write_bytes(b"no graph")

    async def walk() -> None:
        bundles = shelf(folder)
        for _ in range(2):
            with pytest.raises(BundleError):
                async with bundles.using("one"):
                    pass
        assert names(bundles) == []

    asyncio.run(walk())


def test_the_command_serves_a_folder(serve, folder: Path) -> None:
    served = serve(f"--models-dir={folder}", "--idle", "5m")
    with closing(httpx.Client(base_url=served.url)) as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["one", "three", "two"]
        assert client.post("/v1/completions", json={"model": "two", **BODY}, timeout=60).status_code == 200
