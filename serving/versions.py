"""Versions of a model on disk: saved_models/NAME/1, /2, ... written whole or not at all.

TensorFlow Serving polls NAME and loads the highest integer it finds there, so an integer folder has
to be complete the moment it appears. A version is therefore written under a hidden draft name,
flushed to the disk, and renamed: the rename is the only step a reader can see.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from towers.errors import InputError

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DRAFT_PREFIX = ".tmp-"
_MAX_VERSION = 2**63 - 1  # int64 in TensorFlow Serving's messages


@dataclass
class Draft:
    """A version being written.

    Attributes:
        path: the folder to write into; once published, the version's own folder.
        version: the number it was published under; None until then.
    """

    path: Path
    version: int | None = None


@contextmanager
def new_version(base: str | Path, *, follows: int | None = None) -> Iterator[Draft]:
    """Publishes what the block writes into `draft.path` as the next version of the model `base`.

    The version appears when the block ends, complete and flushed to the disk, under one more than
    the highest number there is. When the block raises, nothing appears. Any number of exporters may
    publish to one base at once: each gets its own number. What a killed exporter left behind is
    removed by the next one.

    Args:
        base: the model's folder, `saved_models/NAME`; made if it does not exist.
        follows: the version that this one is made from, if it must not undo what another exporter
            publishes meanwhile.

    Yields:
        The draft. Its folder exists and is empty.

    Raises:
        InputError: `base` cannot be a model's folder, or its highest version is not `follows`.
    """
    with new_versions([base], follows=follows) as (draft,):
        yield draft


@contextmanager
def new_versions(
    bases: Sequence[str | Path], *, follows: int | None = None
) -> Iterator[list[Draft]]:
    """Publishes versions of models that belong together, under one number; see `new_version`.

    They appear when the block ends and all are complete, by one rename each: within milliseconds,
    but not at one moment. A process that is killed between two renames leaves the number with some
    of the models alone.

    Args:
        bases: the models' folders.
        follows: the highest version of any of them, as in `new_version`.

    Yields:
        A draft for each model.

    Raises:
        InputError: see `new_version`.
    """
    folders = [Path(base) for base in bases]
    for base in folders:
        check_model_folder(base)
    with ExitStack() as workspaces:
        drafts = [Draft(workspaces.enter_context(_workspace(base))) for base in folders]
        yield drafts
        for draft in drafts:
            _flush(draft.path)
        version = _claim([draft.path for draft in drafts], folders, follows)
        for draft, base in zip(drafts, folders, strict=True):
            draft.version, draft.path = version, base / str(version)
            _fsync(base)


def version_folders(base: str | Path) -> dict[int, Path]:
    """The complete versions under `base`, ascending; empty if there is no such folder.

    As in TensorFlow Serving, a name may begin with zeros (`007` is version 7), a version is at most
    2^63 - 1, and of two folders with one number (`7`, `007`) the last in alphabetical order counts.
    """
    try:
        names = os.listdir(base)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    folders = {}
    for name in sorted(names):
        version, folder = _version(name), Path(base) / name
        if version is not None and (folder / "saved_model.pb").is_file():
            folders[version] = folder
    return dict(sorted(folders.items()))


def existing_version(base: str | Path, version: int | None = None) -> tuple[int, Path]:
    """A version and its folder: the one named, or the newest, which a server would load.

    Raises:
        InputError: there is no such version, or none at all.
    """
    folders = version_folders(base)
    if not folders:
        raise InputError(f"{base} holds no version of a model: name saved_models/NAME")
    if version is None:
        version = max(folders)
    if version not in folders:
        there = ", ".join(map(str, folders))
        raise InputError(f"{base} holds no complete version {version}; there are {there}")
    return version, folders[version]


def check_model_folder(base: str | Path) -> None:
    """Checks that `base` can hold the versions of a model, under a name a client can ask for.

    Raises:
        InputError: the folder's name is not a model name, or `base` is a file.
    """
    base = Path(base)
    name = base.name or base.resolve().name
    if not _MODEL_NAME.fullmatch(name) or name == "..":
        raise InputError(
            f"{name!r} is not a model name ({base}): use letters, digits, '_', '.' and '-'."
        )
    if _version(name) is not None:
        raise InputError(
            f"{base} looks like a version, not like a model: name the folder above the versions, "
            "such as saved_models/NAME."
        )
    if base.exists() and not base.is_dir():
        raise InputError(f"{base} is a file; the versions of a model need a folder.")


def _version(name: str) -> int | None:
    """The version whose folder is named so; None where the name is not a version's."""
    if not (name.isascii() and name.isdigit()):
        return None
    version = int(name)
    return version if version <= _MAX_VERSION else None


@contextmanager
def _workspace(base: Path) -> Iterator[Path]:
    """An empty folder inside `base` to write a version in; what is left of it goes in the end."""
    base.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(base)
    workspace, lock = _make_workspace(base)
    try:
        folder = workspace / "version"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(lock)


def _make_workspace(base: Path) -> tuple[Path, int]:
    """Makes the folder a draft is written in, locked for as long as this process lives.

    The kernel drops the lock when the process dies, however it dies. That tells an abandoned
    workspace from a busy one, in other containers too, where a process id would say nothing.
    """
    while True:
        workspace = base / f"{_DRAFT_PREFIX}{uuid.uuid4().hex}"
        workspace.mkdir()  # unlike tempfile.mkdtemp: the server may run as another user
        lock = _try_lock(workspace)
        if lock is not None:
            return workspace, lock
        # An exporter that started at the same moment took it for abandoned, and removed it.


def _remove_abandoned(base: Path) -> None:
    for workspace in base.glob(f"{_DRAFT_PREFIX}*"):
        with suppress(PermissionError):  # another user's: theirs to remove
            lock = _try_lock(workspace)
            if lock is not None:
                shutil.rmtree(workspace, ignore_errors=True)
                os.close(lock)


def _try_lock(workspace: Path) -> int | None:
    """Locks a workspace; None where another process has it, or has removed it."""
    path = workspace / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # not removed between the open and the lock
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def _claim(drafts: Sequence[Path], bases: Sequence[Path], follows: int | None) -> int:
    """Renames the drafts to the next number that is free in all bases.

    A folder cannot be renamed onto one that holds files, so of two exporters that reach for the
    same number one fails here, and takes the next.
    """
    while True:
        taken = (_version(name) for base in bases for name in os.listdir(base))
        version = 1 + max((number for number in taken if number is not None), default=0)
        if follows not in (None, version - 1):
            raise InputError(
                f"version {version - 1} of {bases[0]} appeared while its successor was made from "
                f"version {follows}: nothing was published; run the command again"
            )
        moves = [(draft, base / str(version)) for draft, base in zip(drafts, bases, strict=True)]
        try:
            for draft, target in moves:
                os.rename(draft, target)
        except BaseException as error:
            for draft, target in moves:
                if not draft.exists():  # else it was not moved, and the target is not ours
                    os.rename(target, draft)
            if not isinstance(error, OSError) or not any(target.exists() for _, target in moves):
                raise
        else:
            return version


def _flush(folder: Path) -> None:
    """Forces every file and folder of a tree to the disk, so that the rename cannot outrun them."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync(Path(parent) / name)
        _fsync(Path(parent))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
