"""Embedded language flows from Python.

A model writes text by carrying noise to latents of a text with a learned flow, and reading words from them at the end::

    import elf_flows

    model = elf_flows.load("models/mini-de-en")
    model.generate(["Ein Programm zum Zeichnen"], steps=8, seed=0)

All computing is done by the Rust library ``elf-lm``, on the libtorch of the installed ``torch``. The global interpreter
lock is released meanwhile, and Ctrl-C stops it.
"""

import atexit as _atexit
import os as _os
import sys as _sys

#: The version of torch whose libtorch the native part is built against.
TORCH_VERSION = "2.11"

if "torch" not in _sys.modules and "OMP_WAIT_POLICY" not in _os.environ:
    # As the program does: libtorch's threads otherwise spin for long while they wait, which starves whatever runs beside them.
    _os.environ.setdefault("GOMP_SPINCOUNT", "10000")

try:
    # It loads libtorch, which the native part is linked to by name alone.
    import torch as _torch
except ImportError as _error:
    raise ImportError(
        f"elf_flows computes with PyTorch {TORCH_VERSION}, which cannot be imported ({_error}): "
        f'install it with `pip install "torch=={TORCH_VERSION}.*"`'
    ) from _error

if _torch.__version__.split("+")[0].split(".")[:2] != TORCH_VERSION.split("."):
    raise ImportError(
        f"elf_flows is built for PyTorch {TORCH_VERSION} and {_torch.__version__} is installed, whose libtorch is another: "
        f'install the right one with `pip install "torch=={TORCH_VERSION}.*"`'
    )

from elf_flows._native import Encoded, Model, bleu, load, rouge, train
from elf_flows._native import stop_all as _stop_all
from elf_flows.errors import (
    ClosedError,
    ElfError,
    InternalError,
    MismatchError,
    PlaceError,
    RequestError,
    SettingError,
    TensorError,
)
from elf_flows.texts import Event, Frame, Text, Texts, Trajectory

# Work on other threads has to end before libtorch does.
_atexit.register(_stop_all)

__all__ = [
    "TORCH_VERSION",
    "ClosedError",
    "ElfError",
    "Encoded",
    "Event",
    "Frame",
    "InternalError",
    "MismatchError",
    "Model",
    "PlaceError",
    "RequestError",
    "SettingError",
    "TensorError",
    "Text",
    "Texts",
    "Trajectory",
    "bleu",
    "load",
    "rouge",
    "train",
]
