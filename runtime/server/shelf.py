"""The bundles of a server: one that stays loaded, or several that are loaded when a request names them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.manifest import FILE, Manifest
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.served import Served
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.system.machine import CGROUP, memory
from rrt_edge.runtime.system.memory import return_unused
from rrt_edge.runtime.system.options import shown

TAG = ":latest"  # that clients of Ollama put behind names
SHARE = 1.5  # of its files: the memory of a loaded bundle, its packed weights and a first reply's keys and values
SWEEPS = 4  # looks for idle bundles in the time after which they are unloaded
SHORTEST, LONGEST = 0.05, 15.0  # seconds between two looks
MIB = 1 << 20


@dataclass(frozen=True)
class Listed:
    """A bundle by one of its names, of which `root` is the first; `served` where it is loaded."""

    name: str
    root: str
    manifest: Manifest
    template: ChatTemplate | None
    created: int
    served: Served | None

    def about(self) -> dict[str, Any]:
        """What /v1/models tells."""
        manifest, served = self.manifest, self.served
        facts = {
            "loaded": served is not None,
            "loops": manifest.architecture.loops,
            "context": manifest.architecture.context_length,
            "chat": self.template is not None,
            "gate_trained": manifest.gate.trained,
            "threshold": manifest.gate.threshold,
            "points": manifest.gate.points,
            "curve": [asdict(point) for point in manifest.gate.curve],
            "examples": list(manifest.examples),
            **({} if served is None else served.facts()),
        }
        about = {"id": self.name, "object": "model", "created": self.created, "owned_by": "rrt-edge"}
        return {**about, "root": self.root, "rrt_edge": facts}


class Shelf(Protocol):
    """What a server has of its bundles."""

    def listed(self) -> list[Listed]:
        """All bundles, by each of their names."""
        ...

    def one(self, name: Any) -> Listed:
        """A bundle by its name; raises ApiError."""
        ...

    def loaded(self) -> Sequence[Served]: ...

    def using(self, name: Any) -> AbstractAsyncContextManager[Served]:
        """A context manager with the loaded bundle that a request's `model` stands for, which stays loaded meanwhile.

        Raises:
            ApiError: none is called so, or there is no room for it.
            BundleError: it cannot be loaded.
        """
        ...

    async def unload(self, name: Any) -> str:
        """Unload a bundle where nobody uses it and it can be loaded again; its name. Raises ApiError."""
        ...

    def start(self) -> None: ...

    async def stop(self) -> None: ...


class OneBundle:
    """A bundle that stays loaded."""

    def __init__(self, model: Model, options: ServerOptions) -> None:
        self._options, self._served = options, Served(model, options)

    def listed(self) -> list[Listed]:
        return [self._listed(name) for name in self._options.names]

    def _listed(self, name: str) -> Listed:
        served = self._served
        model = served.model
        return Listed(name, self._options.name, model.manifest, model.template, served.created, served)

    def one(self, name: Any) -> Listed:
        return self._listed(self._known(name))

    def loaded(self) -> Sequence[Served]:
        return [self._served]

    @asynccontextmanager
    async def using(self, name: Any) -> AsyncIterator[Served]:
        self._known(name)
        yield self._served

    def _known(self, name: Any) -> str:
        """A name that the bundle answers to; the first of its own where a request has none."""
        names = self._options.names
        if name is None:
            return self._options.name
        if isinstance(name, str) and (bare(name) in names or self._options.any_model):
            return name
        here = " and ".join(map(repr, names))
        more = "rrt-edge serve --alias NAME, or --any-model, takes further names"
        raise not_here(name, f"this server has {here} ({more})")

    async def unload(self, name: Any) -> str:
        return self._known(name)  # it stays

    def start(self) -> None:
        self._served.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._served.stop)


@dataclass
class _Place:
    """A loaded bundle: how many are about to ask it, and when it was last used."""

    served: Served
    users: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def busy(self) -> bool:
        return self.users > 0 or self.served.worker.asked


class ManyBundles:
    """Bundles that are loaded when a request names them, and unloaded when nobody has asked for a while, or when
    another needs the memory.

    Args:
        folders: the bundles by name, as they are now.
        load: loads a bundle.
        options: of each of them, but for the name.
        idle: seconds without a request after which a bundle is unloaded; 0: never.
        available: the bytes of memory that are available.
    """

    def __init__(
        self,
        folders: Callable[[], Mapping[str, Path]],
        load: Callable[[Path], Model],
        options: ServerOptions,
        idle: float,
        available: Callable[[], int] = lambda: memory(CGROUP)[1],
    ) -> None:
        self._folders, self._load, self._options = folders, load, options
        self._idle, self._available = idle, available
        self._places: dict[str, _Place] = {}
        self._loading = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._tasks = set[asyncio.Task[_Place]]()  # that load a bundle

    def listed(self) -> list[Listed]:
        found = []
        for name in sorted(self._folders()):
            with suppress(ApiError, BundleError):  # a damaged one is told to who asks for it
                found.append(self.one(name))
        return found

    def one(self, name: Any) -> Listed:
        name, folder = self._find(name)
        place = self._places.get(name)
        created = int((folder / FILE).stat().st_mtime)
        if place is not None:
            model = place.served.model
            return Listed(name, name, model.manifest, model.template, created, place.served)
        return Listed(name, name, Manifest.read(folder), ChatTemplate.from_folder(folder), created, None)

    def loaded(self) -> Sequence[Served]:
        return [place.served for place in self._places.values()]

    @asynccontextmanager
    async def using(self, name: Any) -> AsyncIterator[Served]:
        place = await self._asked(*await asyncio.to_thread(self._find, name))
        try:
            yield place.served
        finally:
            _leave(place)

    async def _asked(self, name: str, folder: Path) -> _Place:
        """A bundle with one user more; where that one goes while it is loaded, it is loaded all the same."""
        place = self._places.get(name)
        if place is not None:
            place.users += 1
            return place
        loading = asyncio.create_task(self._loaded(name, folder))
        self._tasks.add(loading)
        loading.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_leave_loaded)
            raise

    async def _loaded(self, name: str, folder: Path) -> _Place:
        async with self._loading:
            place = self._places.get(name) or await self._take_down(name, folder)
            place.users += 1
            return place

    def _find(self, name: Any) -> tuple[str, Path]:
        folders = self._folders()
        found = name if name in folders else bare(name)
        if not isinstance(found, str) or found not in folders:
            here = ", ".join(sorted(folders)) or "none"
            if name is None:
                raise ApiError(400, f"model: must name one of the models here: {here}", "model")
            raise not_here(name, f"this server has {here}")
        return found, folders[found]

    async def _take_down(self, name: str, folder: Path) -> _Place:
        """Load a bundle, when those have made room for it that nobody uses; the longest unused first."""
        manifest = await asyncio.to_thread(Manifest.read, folder)
        needed = int(SHARE * manifest.total_bytes)
        while self._available() < needed:
            unused = [(place.used, other) for other, place in self._places.items() if not place.busy]
            if not unused:
                there = f"{self._available() // MIB} MiB are available"
                remedy = "try again when other requests have ended"
                message = f"model {name!r}: needs about {needed // MIB} MiB of memory, and {there}; {remedy}"
                raise ApiError(503, message, "model", headers={"Retry-After": "10"})
            await self._put_back(min(unused)[1])
        model = await asyncio.to_thread(self._load, folder)
        served = Served(model, replace(self._options, name=name, aliases=()))
        served.start()
        place = self._places[name] = _Place(served)
        return place

    async def _put_back(self, name: str) -> None:
        await asyncio.to_thread(_close, self._places.pop(name).served)

    async def unload(self, name: Any) -> str:
        found, _ = await asyncio.to_thread(self._find, name)
        await self._unload(found)
        return found

    async def _unload(self, name: str) -> None:
        async with self._loading:
            place = self._places.get(name)
            if place is not None and not place.busy:
                await self._put_back(name)

    def start(self) -> None:
        if self._idle:
            self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Unload what nobody has asked for in a while."""
        while True:
            await asyncio.sleep(min(max(self._idle / SWEEPS, SHORTEST), LONGEST))
            now = time.monotonic()
            for name, place in list(self._places.items()):
                if place.busy:
                    place.used = now
                elif now - place.used >= self._idle:
                    await self._unload(name)

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._loading:
            for name in list(self._places):
                await self._put_back(name)


def _close(served: Served) -> None:
    served.stop()
    served.model.close()
    return_unused()


def _leave(place: _Place) -> None:
    place.users -= 1
    place.used = time.monotonic()


def _leave_loaded(loading: asyncio.Task[_Place]) -> None:
    """Who asked for a bundle has gone before it was loaded."""
    if not loading.cancelled() and loading.exception() is None:
        _leave(loading.result())


def bare(name: Any) -> Any:
    """A name without what clients of Ollama put behind it."""
    return name.removesuffix(TAG) if isinstance(name, str) else name


def not_here(name: Any, here: str) -> ApiError:
    return ApiError(404, f"model {shown(name)}: not served here; {here}", "model", "model_not_found")
