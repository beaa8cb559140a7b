"""Going back: an earlier version of a model, published again as its newest.

TensorFlow Serving serves the highest number there is. To delete newer versions instead would take
them from a server that is answering with them, and leave nothing to go forward to.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from serving.manifest import MANIFEST_FILE, Manifest
from serving.shards import find_shards
from serving.versions import existing_version, new_versions, version_folders
from towers.errors import InputError


@dataclass(frozen=True)
class RollbackResult:
    """An earlier version in service again.

    Attributes:
        path: folder of the new version; of a sharded model the folder that holds the shards.
        version: its number.
        republished: number of the version it equals.
    """

    path: Path
    version: int
    republished: int


def roll_back(base: str | Path, version: int | None = None) -> RollbackResult:
    """Publishes an earlier version again, under the next number.

    Works for any SavedModel, and for all shards of a model at once. Files are hard links where the
    file system has them, so it takes no time and no room; the manifest says which version it was,
    in `republished`.

    Args:
        base: the model's folder, `saved_models/NAME`.
        version: the version to go back to. The one before the newest if None; where the newest is
            itself a version that was gone back to, the one before that: a second roll-back goes
            further back, and does not return.

    Returns:
        The published version.

    Raises:
        InputError: there is no such version, none before, it is in service already, or another
            version was published meanwhile.
    """
    shards = find_shards(base)
    if shards:
        bases, newest = [path.parent for path in shards.paths], shards.version
    else:
        newest, path = existing_version(base)
        bases = [path.parent]
        if (path / MANIFEST_FILE).is_file():
            Manifest.read(path).check_whole(path)
    everywhere = set.intersection(*(set(version_folders(one)) for one in bases))
    folders = {n: path for n, path in version_folders(bases[0]).items() if n in everywhere}
    serving = _origin(folders, newest)
    if version is None:
        version = max((number for number in folders if number < serving), default=None)
        if version is None:
            raise InputError(f"{base} holds no version before {serving}: name one to go back to")
        version = _origin(folders, version)
    if shards:
        earlier = find_shards(base, version)
        assert earlier is not None
        sources = earlier.paths
    else:
        sources = [existing_version(base, version)[1]]
    if version in (newest, serving):
        raise InputError(f"version {version} of {base} is the one in service")
    with new_versions(bases, follows=shards.newest if shards else newest) as drafts:
        for draft, folder in zip(drafts, sources, strict=True):
            shutil.copytree(folder, draft.path, copy_function=_link_or_copy, dirs_exist_ok=True)
            if (folder / MANIFEST_FILE).is_file():
                (draft.path / MANIFEST_FILE).unlink()  # or the link's other end would change
                manifest = Manifest.read(folder)
                replace(manifest, republished=_origin(folders, version)).write(draft.path)
    published = drafts[0].version
    assert published is not None
    return RollbackResult(shards.base if shards else drafts[0].path, published, version)


def _origin(folders: dict[int, Path], version: int) -> int:
    """The version that one was when it was first published, if it is still there."""
    if not (folders[version] / MANIFEST_FILE).is_file():
        return version
    republished = Manifest.read(folders[version]).republished
    return republished if republished in folders else version


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        return shutil.copy2(source, target)
    return target
