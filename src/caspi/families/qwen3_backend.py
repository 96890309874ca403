"""The classes of the qwen-asr package, and nothing else of it."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from caspi.errors import UserError
from caspi.families.light_imports import light_imports

_NAME = "caspi_qwen3_asr_backend"


@functools.cache
def backend() -> ModuleType:
    """`qwen_asr.core.transformers_backend`, loaded under a name of its own.

    The same files, but importing them by their usual name runs `qwen_asr/__init__` first, which imports web
    servers' and other languages' worth of packages (seconds in every training and serving process).
    """
    package = importlib.util.find_spec("qwen_asr")
    if package is None or package.origin is None:
        raise UserError("the package qwen-asr is not installed: pip install 'caspi[train]'")
    folder = Path(package.origin).parent / "core" / "transformers_backend"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module  # its own relative imports look here
    try:
        with light_imports():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module
