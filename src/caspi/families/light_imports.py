"""Importing transformers without the data-science stack that it imports for a function each.

transformers takes `roc_curve` (assisted decoding) and `linear_sum_assignment` (object detection) from sklearn and
scipy as it is imported, which costs every training and serving process seconds and 100 MB. While `light_imports`
is open these two names are functions that import the real ones when they are called: who calls them gets the same
result, who imports sklearn or scipy himself, before or after, gets them as ever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_FUNCTIONS = (("sklearn.metrics", "roc_curve"), ("scipy.optimize", "linear_sum_assignment"))


@contextmanager
def light_imports() -> Iterator[None]:
    """For the import statements of transformers, and nothing else."""
    standing_in = {}
    for name, function in _FUNCTIONS:
        if name not in sys.modules:
            module = standing_in[name] = ModuleType(name)
            setattr(module, function, _called_later(name, function))
    sys.modules.update(standing_in)
    try:
        yield
    finally:
        for name, module in standing_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _called_later(module: str, function: str) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*given, **named)

    return call
