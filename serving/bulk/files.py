"""Files of a pipeline, on whatever filesystem Beam knows: whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from towers.errors import InputError

WORK_PREFIX = ".work-"

_RAW = CompressionTypes.UNCOMPRESSED


@contextmanager
def new_file(path: str) -> Iterator[Path]:
    """Gives a local path to write to; what is written there then appears as `path`, at once.

    Args:
        path: of the file to write or replace.

    Yields:
        A path in a temporary folder of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="towers-") as folder:
        local = Path(folder, "file")
        yield local
        head, tail = FileSystems.split(path)
        draft = FileSystems.join(head, f".{tail}-{uuid.uuid4().hex}.tmp")
        with local.open("rb") as source, FileSystems.create(draft, compression_type=_RAW) as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            if is_local(path):
                os.fsync(target.fileno())
    move(draft, path)


def open_file(path: str) -> Any:
    """Opens a file for reading, its bytes as they are."""
    return FileSystems.open(path, compression_type=_RAW)


def move(source: str, target: str) -> None:
    """Renames a file, in place of one that is there."""
    if not is_local(target):
        remove(target)  # not every filesystem renames onto a file
    FileSystems.rename([source], [target])


def remove(path: str) -> None:
    """Removes a file if it is there."""
    with suppress(BeamIOError):
        FileSystems.delete([path])


def remove_folder(path: str) -> None:
    """Removes a folder and what is in it, if it is there."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(f"{path}/")


def sizes(pattern: str) -> dict[str, int]:
    """Path to size in bytes of the files that match a pattern."""
    return {file.path: file.size_in_bytes for file in FileSystems.match([pattern])[0].metadata_list}


def read_json(path: str) -> dict[str, Any] | None:
    """Reads a JSON file; None where there is none, or it is none."""
    if not FileSystems.exists(path):
        return None
    with open_file(path) as file:
        try:
            facts = json.load(file)
        except ValueError:
            return None
    return facts if isinstance(facts, dict) else None


def write_json(path: str, facts: dict[str, Any]) -> None:
    """Writes a JSON file for people to read, whole or not at all."""
    with new_file(path) as local:
        local.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's."""
    return FileSystems.get_scheme(path) is None


def put_folder(path: str, save: Callable[[Path], None]) -> str:
    """Has a folder's files written on this machine and puts them where `path` is; returns it."""
    if is_local(path):
        save(Path(path))
        return path
    with tempfile.TemporaryDirectory(prefix="towers-") as folder:
        save(Path(folder))
        for file in Path(folder).rglob("*"):
            if file.is_file():
                target = FileSystems.join(path, *file.relative_to(folder).parts)
                with file.open("rb") as source, FileSystems.create(target) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    return path


@contextmanager
def local_folder(path: str) -> Iterator[Path]:
    """Gives a folder's files on this machine: the folder itself, or a copy of a remote one."""
    if is_local(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="towers-") as folder:
        for file in sizes(FileSystems.join(path, "**")):
            target = Path(folder, file.removeprefix(path).lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_file(file) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        yield Path(folder)


@contextmanager
def one_writer(folder: str) -> Iterator[None]:
    """Keeps a local folder for the block alone, and clears what a killed writer left in it.

    Other filesystems have no locks: there it is the user who sees to it.

    Raises:
        InputError: another process has the folder.
    """
    if not is_local(folder):
        yield
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing to {folder}: wait for its end") from None
        for left in path.glob(f"{WORK_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in path.glob("**/.*.tmp"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(lock)
        with suppress(OSError):
            path.rmdir()  # where nothing has been written
