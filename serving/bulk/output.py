"""The folder of encoded items: its manifest, which of its shards are finished, and of what.

vectors/
    manifest.json                    what was encoded, by which encoder; complete or not
    part-00000-of-00016.parquet      ids and vectors, in the order of the catalogue
    finished/part-00000-of-00016.json
    rejected.jsonl                   rows that are no items, and why
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from serving.bulk.shard_files import Format, shard_file
from towers.packages import package_versions

MANIFEST_FILE = "manifest.json"
FINISHED_FOLDER = "finished"
REJECTED_FILE = "rejected.jsonl"
DIGEST = "sha256 of items and encoder"


@dataclass(frozen=True, kw_only=True)
class EncodedManifest:
    """What a folder of encoded items holds.

    Attributes:
        encoder_fingerprint: as in the manifest of an export.
        item_template: the item text template.
        format: ``parquet`` or ``tfrecord``.
        shards: the number of shards; item to shard as `serving.shards.shard_of` says.
        embedding_dim: width of a vector.
        catalog: the catalogue files.
        complete: whether all shards are finished.
        items: how many are encoded; 0 until complete.
        rejected: how many rows are in rejected.jsonl; 0 until complete.
        packages: package to version.
    """

    encoder_fingerprint: str
    item_template: str
    format: Format
    shards: int
    embedding_dim: int
    catalog: list[str]
    complete: bool = False
    items: int = 0
    rejected: int = 0
    packages: dict[str, str] = field(default_factory=package_versions)

    def facts(self) -> dict[str, Any]:
        """As it stands in manifest.json."""
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> EncodedManifest:
        """From manifest.json; fields of a later release are passed over.

        Raises:
            TypeError: a field is missing.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in facts.items() if name in known})

    def part(self, shard: int) -> str:
        """The name of a shard's file."""
        return shard_file(shard, self.shards, self.format)

    def finished(self, shard: int) -> str:
        """The name of a shard's record, in the folder `FINISHED_FOLDER`."""
        return str(Path(self.part(shard)).with_suffix(".json"))


class ShardDigest:
    """What the vectors of a shard depend on: while equal, its file stays valid.

    Args:
        encoder_fingerprint: of the encoder.
    """

    def __init__(self, encoder_fingerprint: str) -> None:
        self._digest = hashlib.sha256(f"1 {encoder_fingerprint}".encode())

    def update(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Takes in further items, in the order that they are written in."""
        for item_id, text in zip(ids, texts, strict=True):
            for part in (item_id.encode(), text.encode()):
                self._digest.update(len(part).to_bytes(8, "little") + part)

    def hexdigest(self) -> str:
        """The digest of all items so far, SHA-256 in hexadecimal."""
        return self._digest.hexdigest()
