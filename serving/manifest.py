"""manifest.json: what an exported version is made of, beside its graph."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from towers.errors import InputError
from towers.packages import package_versions

MANIFEST_FILE = "manifest.json"

STOCK_SERVER = "stock TensorFlow Serving"
SCANN_SERVER = "a server with ScaNN's ops"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Facts about one version.

    Attributes:
        encoder_fingerprint: equal iff the item embeddings of two exports are interchangeable.
        item_template: the item text template.
        query_max_length: longest query, in tokens.
        item_max_length: longest item text, in tokens.
        embedding_dim: width of an embedding.
        item_count: number of items in the index.
        k: width of every answer.
        index_kind: ``exact``, ``scann`` or ``partitioned``.
        index_parameters: what the index was built and is searched with.
        index_recall: share of the exact top k that the index finds.
        index_recall_measured: on what that was measured; ``nothing`` for an exact index.
        index_reason: why this kind of index.
        index_milliseconds: what a search of it for one query took where it was exported, the query
            encoded already; None where nothing was timed.
        exact_milliseconds: what exact search took there; None likewise.
        lexical_weight: weight of the lexical score in `search`; 0 for none.
        lexical_parameters: what the lexical index was built with.
        columns: column of `search_filtered` to its kind, ``text`` or ``number``.
        recommender: what `recommend` and `score` were made of; empty without them.
        shard: of a shard its ``number``, their ``count`` and the ``export_id`` that they share;
            empty for the whole of a catalogue.
        signatures: names of the signatures.
        server: which server can load the version.
        foreign_ops: ops in the graph that a stock TensorFlow Serving does not have.
        run_id: the training run; empty if none was named.
        republished: the earlier version that this one equals, after a roll-back; None otherwise.
        created: UTC time, ISO 8601.
        packages: package to version.
    """

    encoder_fingerprint: str
    item_template: str
    query_max_length: int
    item_max_length: int
    embedding_dim: int
    item_count: int
    k: int
    index_kind: str
    index_parameters: dict[str, int]
    index_recall: float
    index_recall_measured: str
    index_reason: str
    signatures: list[str]
    server: str
    foreign_ops: list[str] = field(default_factory=list)
    index_milliseconds: float | None = None
    exact_milliseconds: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    recommender: dict[str, Any] = field(default_factory=dict)
    shard: dict[str, Any] = field(default_factory=dict)
    lexical_weight: float = 0.0
    lexical_parameters: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    republished: int | None = None
    created: str = field(default_factory=_now)
    packages: dict[str, str] = field(default_factory=package_versions)

    def write(self, folder: str | Path) -> None:
        """Writes manifest.json into a version's folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (Path(folder) / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    def check_whole(self, version: Path) -> None:
        """Raises InputError where this is the manifest of a shard, which changes with all others.

        Args:
            version: the version's folder.
        """
        if self.shard:
            raise InputError(
                f"{version.parent} is one of {self.shard['count']} shards: name the folder that "
                f"holds all of them, {version.parent.parent}"
            )

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Reads the manifest of a version's folder. Fields of a later release are passed over.

        Raises:
            InputError: there is no manifest, or it is not one.
        """
        path = Path(folder) / MANIFEST_FILE
        try:
            facts: Any = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            return cls(**{name: value for name, value in facts.items() if name in known})
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no {MANIFEST_FILE}: not an export of ours") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not the manifest of an export: {error}") from error
