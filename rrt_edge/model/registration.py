"""Make transformers' Auto classes know recursive checkpoints, without importing transformers for those who do not.

`RecursiveConfig` registers itself as soon as transformers' AutoConfig is imported; the first config made imports the
model, which registers too. (Importing the model any earlier meets transformers half imported.)
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
REGISTRAR = "rrt_edge.model.configuration"


class _RegisteringLoader(Loader):
    """Runs a module as its own loader does, then imports our registrar."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(REGISTRAR)


class _AutoConfigFinder(MetaPathFinder):
    """Finds AutoConfig's module as usual and gives it a registering loader, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def register() -> None:
    """Register with transformers now if it is imported already, otherwise when it is."""
    if AUTO_CONFIG in sys.modules:
        importlib.import_module(REGISTRAR)
    else:
        sys.meta_path.insert(0, _AutoConfigFinder())
