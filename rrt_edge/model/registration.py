"""Make transformers' Auto classes know recursive checkpoints, without importing transformers for those who do not.

`RecursiveConfig` is registered as soon as transformers' AutoConfig is imported, and `RecursiveForCausalLM` as soon as
AutoModelForCausalLM is: importing the model any earlier meets transformers half imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HALVES = {  # transformers' module: ours that registers with it
    "transformers.models.auto.configuration_auto": "rrt_edge.model.configuration",
    "transformers.models.auto.modeling_auto": "rrt_edge.model.modeling",
}


class _RegisteringLoader(Loader):
    """Runs a module as its own loader does, then imports the one of ours that registers with it."""

    def __init__(self, loader: Loader, registrar: str) -> None:
        self.loader, self.registrar = loader, registrar

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.registrar)


class _AutoClassFinder(MetaPathFinder):
    """Finds the modules of transformers' Auto classes as usual and gives each a registering loader, once."""

    def __init__(self, halves: dict[str, str]) -> None:
        self.halves = halves

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.halves:
            return None
        registrar = self.halves.pop(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, registrar)
        return spec


def register() -> None:
    """Register with what transformers has imported already now, and with the rest when it is imported."""
    imported = {theirs: ours for theirs, ours in HALVES.items() if theirs in sys.modules}
    sys.meta_path.insert(0, _AutoClassFinder({theirs: HALVES[theirs] for theirs in HALVES.keys() - imported.keys()}))
    for ours in imported.values():
        importlib.import_module(ours)
