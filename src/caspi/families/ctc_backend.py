"""The classes of `transformers` that make a CTC model, imported quickly and quietly."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from types import ModuleType

from caspi.families.light_imports import light_imports


@functools.cache
def backend(model_type: str) -> ModuleType:
    """`transformers`, with the modules of this kind of model imported."""
    name = {"wav2vec2-bert": "wav2vec2_bert", "parakeet_ctc": "parakeet"}.get(model_type, model_type)
    # Parakeet's module prints what its authors have still to document.
    with light_imports(), contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        return importlib.import_module("transformers")
