"""The engines that dhc is measured against, an adapter a file.

An adapter is a module with

    NAME                               as shown in tables
    version() -> str                   raises ImportError where the engine is not installed
    prepare(model, signature)          what is done once before deployment: the path of the engine's own format
    load(prepared, threads, signature) opens that; returns a function of the feeds that returns the outputs in order

and settings that the engine's own documents call its best for latency in float32. What an engine refuses is raised and
becomes the reason in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]

PEERS = ("onnxruntime", "openvino", "mnn", "ncnn", "torch_eager", "torch_inductor")
"""Measured unless others are named."""
ON_DEMAND = ("tvm",)
"""Measured when they are named."""


class PeerError(Exception):
    """An engine cannot take a model; the message is the reason."""


def adapter(name: str) -> ModuleType:
    """The adapter module of a peer, or of dhc."""
    return import_module(f"bench.peers.{name}_adapter")


def converted(model: Path, suffix: str) -> Path:
    """Where the conversion of a model to an engine's own format is kept."""
    folder = model.parent / suffix
    folder.mkdir(exist_ok=True)
    return folder / f"{model.stem}.{suffix}"


def is_current(made: Path, model: Path) -> bool:
    """True when a conversion is there and newer than its model."""
    return made.is_file() and made.stat().st_mtime >= model.stat().st_mtime
