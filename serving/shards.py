"""Shards of a catalogue: which items each holds, and where they lie on disk.

    saved_models/shop/
        models.config                  all shards, for a server that serves them all
        shop-00000-of-00002/1, /2, ... a model like any other
        shop-00001-of-00002/1, /2, ...

The shards of one export have one version number and one export id.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.versions import check_model_folder, version_folders
from towers.errors import InputError

if TYPE_CHECKING:
    from serving.lexical import LexicalStatistics

CONFIG_FILE = "models.config"
MAX_SHARDS = 10_000

_ABOUT_CONFIG = """\
# All shards on one server: towers serve --model-config-file FILE, or tensorflow_model_server
# --model_config_file=FILE. Two versions stay in service, so that clients find one that all shards
# have while a new one comes in.
"""


@dataclass(frozen=True)
class Shard:
    """One shard of an export.

    Attributes:
        number: which, from 0.
        count: of how many.
        export_id: equal iff scores of two shards may stand in one ranking.
        places: int32 ``[items]``, the place of each of its items in the whole catalogue: of items
            with equal scores the one with the lower place comes first, as in an index of all.
        statistics: of the words of the whole catalogue; None where words do not count.
        column_kinds: of the columns of the whole catalogue; see `serving.item_columns`.
    """

    number: int
    count: int
    export_id: str
    places: np.ndarray
    statistics: LexicalStatistics | None = None
    column_kinds: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, int | str]:
        """What the manifest says of it."""
        return {"number": self.number, "count": self.count, "export_id": self.export_id}


@dataclass(frozen=True)
class ShardSet:
    """The shards of a model on disk, at one version.

    Attributes:
        base: `saved_models/NAME`.
        version: the newest version that all shards have.
        paths: its folder in each shard, in order.
        newest: the highest version of any shard: more than `version` where an export was killed
            in the moment between the first shard's appearance and the last one's.
    """

    base: Path
    version: int
    paths: list[Path]
    newest: int


def shard_of(item_id: str, count: int) -> int:
    """The shard of an item: CRC-32 of its id in UTF-8, modulo the number of shards."""
    return zlib.crc32(item_id.encode()) % count


def shard_name(model: str, number: int, count: int) -> str:
    """The name that a shard is served under, `shop-00000-of-00004`."""
    return f"{model}-{number:05}-of-{count:05}"


def shard_folders(base: Path, count: int) -> list[Path]:
    """The folders of the shards, in order, whether they are there or not."""
    return [base / shard_name(base.name, number, count) for number in range(count)]


def check_shard_count(count: int) -> None:
    """Raises InputError unless there can be so many shards."""
    if not 1 <= count <= MAX_SHARDS:
        raise InputError(f"the number of shards must be from 1 to {MAX_SHARDS:,}, not {count}")


def check_no_shards(base: Path) -> None:
    """Raises InputError where `base` holds shards: a version beside them would be of the whole."""
    if counts := _shard_counts(base):
        raise InputError(
            f"{base} holds {counts[0]} shards: export with --shards, or to another folder"
        )


def check_shard_base(base: Path) -> None:
    """Checks that `base` can hold shards.

    Raises:
        InputError: its name is no model's, or it holds versions of a whole catalogue.
    """
    check_model_folder(base)
    if versions := version_folders(base):
        raise InputError(
            f"{base} holds version {max(versions)} of a model that is not sharded: export the "
            "shards to another folder"
        )


def find_shards(base: str | Path, version: int | None = None) -> ShardSet | None:
    """The shards that `base` holds; None without any.

    Args:
        base: `saved_models/NAME`.
        version: which version of them; the newest that all have if None.

    Raises:
        InputError: there are shards of more than one count, or not all have such a version.
    """
    base = Path(base).resolve()
    counts = _shard_counts(base)
    if not counts:
        return None
    if len(counts) > 1:
        raise InputError(
            f"{base} holds shards of {len(counts)} exports, with {' and '.join(map(str, counts))} "
            "shards: remove those that are not served any more"
        )
    versions = [version_folders(folder) for folder in shard_folders(base, counts[0])]
    common = set.intersection(*map(set, versions))
    if not common:
        raise InputError(f"the shards in {base} have no version in common: export them again")
    if version is None:
        version = max(common)
    if version not in common:
        there = ", ".join(map(str, sorted(common)))
        raise InputError(f"the shards in {base} do not all have version {version}, but {there}")
    return ShardSet(
        base,
        version,
        [of_shard[version] for of_shard in versions],
        max(max(of_shard, default=0) for of_shard in versions),
    )


def write_config(base: Path, count: int) -> Path:
    """Writes `models.config`, whole or not at all; returns its path."""
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    config = ModelServerConfig()
    for folder in shard_folders(base, count):
        model = config.model_config_list.config.add()
        model.name, model.base_path = folder.name, str(folder)
        model.model_platform = "tensorflow"
        model.model_version_policy.latest.num_versions = 2
    draft = base / f".{CONFIG_FILE}-{os.getpid()}"
    draft.write_text(_ABOUT_CONFIG + text_format.MessageToString(config), "utf-8")
    os.replace(draft, base / CONFIG_FILE)
    return base / CONFIG_FILE


def _shard_counts(base: Path) -> Sequence[int]:
    """The numbers of shards that there are versions of, ascending."""
    if not base.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(base.resolve().name)}-[0-9]{{5}}-of-([0-9]{{5}})")
    matches = {match: path for path in base.iterdir() if (match := pattern.fullmatch(path.name))}
    return sorted({int(match[1]) for match, path in matches.items() if version_folders(path)})
