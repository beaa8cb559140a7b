"""The folder of a head: settings as JSON, weights as plain arrays, nothing that runs code.

head.json          what the head is and what it reads
head.safetensors   its arrays by name, where it has any
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from towers.errors import InputError
from training.atomic_file import atomic_file, write_json

_SETTINGS = "head.json"
_ARRAYS = "head.safetensors"
_FORMAT = 1


def write_head(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a head; the settings come last, so that a folder that has them is whole."""
    if arrays:
        rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        with atomic_file(folder / _ARRAYS) as partial:
            save_file(rows, partial)
    write_json(folder / _SETTINGS, {"format": _FORMAT, "kind": kind, **settings})


def read_head(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a head's settings and arrays.

    Raises:
        InputError: the folder holds no head, one of another kind or of a later format, or its files
            are damaged.
    """
    if not (folder / _SETTINGS).is_file():
        raise InputError(f"{str(folder)!r} holds no head: there is no {_SETTINGS} in it")
    try:
        settings = dict(json.loads((folder / _SETTINGS).read_text("utf-8")))
        path = folder / _ARRAYS
        arrays = load_file(path) if path.is_file() else {}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise damaged(folder, error) from error
    if settings.get("kind") != kind:
        raise InputError(
            f"{str(folder)!r} holds a head for {settings.get('kind')!r}, not for {kind!r}"
        )
    if settings.get("format") != _FORMAT:
        raise InputError(
            f"{str(folder)!r} has head format {settings.get('format')!r}; "
            f"this version reads format {_FORMAT}"
        )
    return settings, arrays


def damaged(folder: Path, error: Exception) -> InputError:
    """The error for a head that cannot be what `write_head` wrote."""
    return InputError(f"head folder {str(folder)!r} is damaged: {type(error).__name__}: {error}")
