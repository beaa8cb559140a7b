"""Encoding a catalogue of any size, with Apache Beam, by the encoder of an export.

    catalogue files -> chunks, their items sorted by shard -> shards: encoded, written, finished

Which of N shards an item belongs to is decided by its id (`serving.shards.shard_of`), so that items
that come and go leave the others where they are. A shard is one unit of work: its items are read,
encoded and written in one place, and it is finished when its file and its record are there. Vectors
never pass through the runner, and items only as names of files: the embedded runner keeps in memory
what passes through it.
"""
