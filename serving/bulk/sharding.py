"""Which shard an item belongs to."""

from __future__ import annotations

import zlib


def shard_of(item_id: str, count: int) -> int:
    """The shard of an item: CRC-32 of its id in UTF-8, modulo the number of shards."""
    return zlib.crc32(item_id.encode()) % count
