"""What people name to run or to look at: a bundle, or what one can be exported from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from rrt_edge.cli.common import BundlePath, NotFound
from rrt_edge.conversion.folder import HUB_ID, local_folder
from rrt_edge.runtime.errors import BadInputError, BundleError

ARCHIVE = re.compile(r"\.(zip|tgz|tar(\.\w+)?)$", re.IGNORECASE)
GGUF = ".gguf"


@dataclass(frozen=True)
class Source:
    """What a bundle can be exported from: a checkpoint's folder, a GGUF file, or a model of the hub."""

    text: str

    @property
    def is_file(self) -> bool:
        return Path(self.text).is_file()

    @property
    def is_of_hub(self) -> bool:
        return not Path(self.text).exists()

    @property
    def stem(self) -> str:
        """What it is called, without where it is."""
        if self.is_of_hub:
            return self.text.rpartition("/")[2]
        path = Path(self.text).resolve()
        return path.name.removesuffix(GGUF) if self.is_file else path.name

    def local(self) -> Path:
        """Where it lies on this machine; of the hub, once it is downloaded.

        Raises:
            BadInputError: the hub does not have it, or is not reached.
        """
        return Path(self.text) if self.is_file else local_folder(self.text)


class BundleOrSource(BundlePath):
    """A bundle's folder or short name, else a `Source`. For commands that are `guarded`."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return find(str(value))
        except BadInputError as error:
            return NotFound(error, str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """What a bundle's path is completed to, with the GGUF files here; or files where nothing fits."""
        matches = super().shell_complete(ctx, param, incomplete)
        here = sorted(path.name for path in Path().glob(f"*{GGUF}") if path.name.startswith(incomplete))
        plain = [match for match in matches if match.type == "plain"]
        items = plain + [CompletionItem(name) for name in here]
        return items or [CompletionItem(incomplete, type="file")]


def find(text: str) -> Path | Source:
    """The folder of a bundle, else a source; what is not there may be on the hub.

    Raises:
        BadInputError: it is none of them.
    """
    from rrt_edge.runtime.library.store import find_bundle

    if Path(text).is_file():
        if ARCHIVE.search(text):
            raise BadInputError(f"{text}: is an archive; install the bundle in it with rrt-edge pull")
        return Source(text)
    try:
        folder = find_bundle(text)
    except BundleError as error:
        if text.endswith(GGUF):
            raise BadInputError(f"{text}: no such file{_exported(text)}") from error
        if HUB_ID.fullmatch(text):
            return Source(text)
        raise BundleError(f"{error}{_exported(text)}") from error
    return folder if _is_bundle(folder) else Source(text)


def _is_bundle(folder: Path) -> bool:
    """
    Raises:
        BundleError: the folder holds neither a bundle nor a checkpoint.
    """
    if (folder / "manifest.json").is_file():
        return True
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return False
    files = sorted(path.name for path in folder.glob(f"*{GGUF}"))
    instead = f"; name a file in it, such as {files[0]}" if files else ""
    raise BundleError(
        f"{folder}: holds no manifest.json, as a bundle does, and no config.json, as a checkpoint does{instead}"
    )


def _exported(text: str) -> str:
    """What was exported from a source that is gone."""
    from rrt_edge.runtime.library.exported import names_exported_from

    names = names_exported_from(str(Path(text).absolute()))
    return f"; what was exported from it is there: rrt-edge run {names[0]}" if names else ""
