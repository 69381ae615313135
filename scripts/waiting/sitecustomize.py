"""Makes each decode stage wait before it starts, as one waits for a GPU, so that many machines can
be shown on one. It is on PYTHONPATH where scripts/many_check.py puts it."""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "flows.machine.launch"
SECONDS = float(os.environ.get("PENSTOCK_CHECK_WAIT") or 0)


class Waiting(importlib.abc.MetaPathFinder):
    """Finds one module as everybody does, and changes what starts stages in it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def loaded(module: ModuleType) -> None:
            load(module)
            start = module.DirectLauncher.start

            def later(launcher: Any, call: Any) -> Any:
                if call.name == "decode":
                    time.sleep(SECONDS)
                return start(launcher, call)

            module.DirectLauncher.start = later

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


if SECONDS:
    sys.meta_path.insert(0, Waiting())
