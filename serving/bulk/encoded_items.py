"""Reading what `towers encode` wrote, for an export of the same catalogue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.bulk.output import (
    DIGEST,
    FINISHED_FOLDER,
    MANIFEST_FILE,
    EncodedManifest,
    ShardDigest,
)
from serving.bulk.shard_files import read_shard_file
from serving.shards import shard_of
from towers.errors import InputError


def read_encoded(
    folder: str | Path, item_ids: Sequence[str], item_texts: Sequence[str], fingerprint: str
) -> np.ndarray:
    """Reads the vectors of a catalogue's items.

    Args:
        folder: what `towers encode` wrote.
        item_ids: ids of all items, in the order of the catalogue.
        item_texts: their texts: vectors of other texts are noticed.
        fingerprint: of the encoder that the vectors must be of.

    Returns:
        float32 ``[N, d]``, in the order of the ids.

    Raises:
        InputError: the folder is not complete, of another encoder or of another catalogue, or a
            file in it is damaged.
    """
    folder = Path(folder)
    try:
        manifest = EncodedManifest.of(json.loads((folder / MANIFEST_FILE).read_text("utf-8")))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {MANIFEST_FILE}: not of `towers encode`") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST_FILE} is damaged: {error}") from None
    if not manifest.complete:
        raise InputError(f"{folder} is not complete: run the same `towers encode` again")
    if manifest.encoder_fingerprint != fingerprint:
        raise InputError(
            f"the vectors in {folder} are of another encoder ({manifest.encoder_fingerprint[:12]}, "
            f"not {fingerprint[:12]}): run `towers encode` with this model, to a new folder"
        )
    rows: list[list[int]] = [[] for _ in range(manifest.shards)]
    for row, item_id in enumerate(item_ids):
        rows[shard_of(item_id, manifest.shards)].append(row)
    vectors = np.empty((len(item_ids), manifest.embedding_dim), np.float32)
    for shard, of_shard in enumerate(rows):
        ids = [item_ids[row] for row in of_shard]
        digest = ShardDigest(fingerprint)
        digest.update(ids, [item_texts[row] for row in of_shard])
        part = manifest.part(shard)
        if (
            _encoded_digest(folder / FINISHED_FOLDER / manifest.finished(shard))
            != digest.hexdigest()
        ):
            raise InputError(
                f"the vectors in {folder} are not of this catalogue: {part} is of other items or "
                "of other texts. Run `towers encode` with this catalogue again"
            )
        found_ids, found = read_shard_file(folder / part, manifest.format)
        if found_ids != ids:
            raise InputError(f"{folder / part} is damaged: run the same `towers encode` again")
        if ids:
            vectors[of_shard] = found
    return vectors


def _encoded_digest(record: Path) -> str | None:
    """Of a shard's record; None where there is none."""
    try:
        return str(json.loads(record.read_text("utf-8"))[DIGEST])
    except (OSError, ValueError, KeyError, TypeError):
        return None
