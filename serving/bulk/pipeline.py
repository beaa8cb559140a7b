"""The Beam pipeline of `towers encode`."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.utils.shared import Shared

from serving.bulk import files
from serving.bulk.chunks import ChunkWriter, Items, read_shard
from serving.bulk.encoder import SavedEncoder
from serving.bulk.output import (
    DIGEST,
    FINISHED_FOLDER,
    MANIFEST_FILE,
    REJECTED_FILE,
    EncodedManifest,
    ShardDigest,
)
from serving.bulk.shard_files import Format, shard_writer
from towers.errors import InputError

DIRECT = "DirectRunner"
DEFAULT_SHARDS = 16
MAX_SHARDS = 10_000

Read = Callable[[BinaryIO, str], Iterator[Any]]
"""From an open file and its name to batches of items and bad rows, such as
`training.catalog_stream.stream_items` yields. Workers import it: a function of a module, or
`functools.partial` of one."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, what is done of it, and what there is to do."""

_REJECTED = "rejected"
_ERROR_FILE = "error.json"
_WINDOW = 8192  # items that are sorted by length together; also rows of a Parquet row group
_POLL_SECONDS = 1.0
# What a folder of encoded items cannot change without being another one.
_LASTING = {
    "encoder_fingerprint": "of another encoder",
    "item_template": "with another item text",
    "format": "in another format",
    "shards": "in another number of shards",
}


@dataclass(frozen=True)
class ItemEncoder:
    """What encodes.

    Attributes:
        model: the folder of a SavedModel with the signature `encode_item`, where all workers can
            read it; or a function that saves one to a folder of this machine.
        fingerprint: as in the manifest of an export.
        item_template: the item text template.
        embedding_dim: width of a vector.
    """

    model: str | Callable[[Path], None]
    fingerprint: str
    item_template: str
    embedding_dim: int


@dataclass(frozen=True)
class EncodeResult:
    """What a run did.

    Attributes:
        manifest: of the output folder.
        encoded: how many shards were encoded; the others were finished before.
    """

    manifest: EncodedManifest
    encoded: int


def encode_catalog(
    read: Read,
    catalog: Sequence[str],
    encoder: ItemEncoder,
    output: str,
    *,
    format: Format = "parquet",
    shards: int = DEFAULT_SHARDS,
    runner: str = DIRECT,
    options: Sequence[str] = (),
    progress: Progress | None = None,
) -> EncodeResult:
    """Encodes catalogue files into shards of ids and vectors.

    A shard that is finished, of these items and this encoder, is left as it is: a run that was
    killed goes on, and after a change of the catalogue only shards with changed items are encoded.

    Args:
        read: reads a catalogue file.
        catalog: paths of catalogue files, or patterns of such (``gs://shop/items-*.jsonl``).
        encoder: what encodes.
        output: the folder to write; see `serving.bulk.output`.
        format: of the shards.
        shards: how many. Each is encoded by one worker, which keeps its ids in memory.
        runner: the name of a Beam runner. ``DirectRunner`` is Beam's embedded one, in Python; what
            Beam runs under this name first tries another, Prism, which it would download.
        options: of Beam and the runner, ``--name=value``.
        progress: told how many shards are done.

    Raises:
        InputError: no catalogue file, one that cannot be read or lacks a column, an encoder that
            is none, or an output folder with other things in it.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise InputError(f"the number of shards must be from 1 to {MAX_SHARDS:,}, not {shards}")
    paths = _catalog_files(catalog)
    for path in paths:
        with files.open_file(path) as file:
            next(read(file, path), None)  # sees the header
    manifest = EncodedManifest(
        encoder_fingerprint=encoder.fingerprint,
        item_template=encoder.item_template,
        format=format,
        shards=shards,
        embedding_dim=encoder.embedding_dim,
        catalog=paths,
    )
    with files.one_writer(output):
        _check_output(output, manifest)
        files.write_json(FileSystems.join(output, MANIFEST_FILE), manifest.facts())
        work = FileSystems.join(output, f"{files.WORK_PREFIX}{uuid.uuid4().hex}")
        try:
            with _watched(work, shards, progress):
                model = encoder.model
                if not isinstance(model, str):
                    model = files.put_folder(FileSystems.join(work, "encoder"), model)
                _run(read, paths, model, manifest, output, work, runner, options)
            rejected = FileSystems.join(output, REJECTED_FILE)
            files.move(FileSystems.join(work, REJECTED_FILE), rejected)
            done = [files.read_json(_done(work, shard)) or {} for shard in range(shards)]
        except Exception as error:
            facts = files.read_json(FileSystems.join(work, _ERROR_FILE))
            if facts is None:
                raise
            if not files.sizes(FileSystems.join(output, FINISHED_FOLDER, "*")):
                files.remove(FileSystems.join(output, MANIFEST_FILE))
            raise InputError(facts["message"]) from error
        finally:
            files.remove_folder(work)
        manifest = replace(
            manifest,
            complete=True,
            items=sum(facts["items"] for facts in done),
            rejected=_count_lines(rejected),
        )
        files.write_json(FileSystems.join(output, MANIFEST_FILE), manifest.facts())
    return EncodeResult(manifest, sum(facts["encoded"] for facts in done))


def _run(
    read: Read,
    paths: Sequence[str],
    model: str,
    manifest: EncodedManifest,
    output: str,
    work: str,
    runner: str,
    options: Sequence[str],
) -> None:
    chosen = FnApiRunner() if runner == DIRECT else runner
    with beam.Pipeline(runner=chosen, options=PipelineOptions(list(options))) as pipeline:
        chunks = (
            pipeline
            | "Files" >> beam.Create(list(enumerate(paths)))
            | "SpreadFiles" >> beam.Reshuffle()
            | "SortByShard"
            >> beam.ParDo(_SortByShard(read, manifest.shards, work)).with_outputs(
                _REJECTED, main="chunks"
            )
        )
        encoded = (
            pipeline
            | "Shards" >> beam.Create(range(manifest.shards))
            | "SpreadShards" >> beam.Reshuffle()
            | "EncodeShard"
            >> beam.ParDo(
                _EncodeShard(model, manifest, output, work), beam.pvalue.AsList(chunks.chunks)
            )
        )
        _ = (
            (chunks[_REJECTED], encoded)
            | beam.Flatten()
            | "AsJson" >> beam.Map(json.dumps, ensure_ascii=False)
            | "WriteRejected"
            >> beam.io.WriteToText(
                FileSystems.join(work, REJECTED_FILE), num_shards=1, shard_name_template=""
            )
        )


class _SortByShard(beam.DoFn):
    """From a catalogue file, ``(number, path)``, to paths of chunks; its bad rows go aside."""

    def __init__(self, read: Read, shards: int, work: str) -> None:
        self._read, self._shards, self._work = read, shards, work

    def process(self, element: tuple[int, str]) -> Iterator[Any]:
        number, path = element
        # A runner may try an element twice: then only one of the two sets of chunks is read.
        prefix = FileSystems.join(self._work, f"{number:06}-{uuid.uuid4().hex}")
        writer = ChunkWriter(prefix, self._shards)
        with _errors_told(self._work), files.open_file(path) as file:
            for part in self._read(file, path):
                if not hasattr(part, "texts"):
                    rejected = _rejected(path, part.row, part.line, part.reason)
                    yield beam.pvalue.TaggedOutput(_REJECTED, rejected)
                    continue
                items = Items([number] * len(part.ids), part.rows, part.lines, part.ids, part.texts)
                if chunk := writer.add(items):
                    yield chunk
            if chunk := writer.flush():
                yield chunk


class _EncodeShard(beam.DoFn):
    """Encodes and writes a shard, given by its number; yields its rows that repeat an id."""

    def __init__(self, model: str, manifest: EncodedManifest, output: str, work: str) -> None:
        self._model, self._manifest, self._output, self._work = model, manifest, output, work
        self._shared = Shared()  # one encoder a process, whatever threads it has

    def process(self, shard: int, chunks: Sequence[str]) -> Iterator[dict[str, Any]]:
        manifest, chunks = self._manifest, sorted(chunks)
        part = FileSystems.join(self._output, manifest.part(shard))
        record = FileSystems.join(self._output, FINISHED_FOLDER, manifest.finished(shard))
        digest, count = ShardDigest(manifest.encoder_fingerprint), 0
        repeats: list[dict[str, Any]] = []
        for ids, texts in _distinct(chunks, shard, manifest.catalog, repeats):
            digest.update(ids, texts)
            count += len(ids)
        facts = {"items": count, DIGEST: digest.hexdigest()}
        found = files.read_json(record) or {}
        size = found.pop("bytes", None)
        to_encode = found != facts or files.sizes(part).get(part) != size
        if to_encode:
            files.remove(record)
            self._encode(shard, chunks, part)
            files.write_json(record, facts | {"bytes": files.sizes(part)[part]})
        files.write_json(_done(self._work, shard), {"items": count, "encoded": to_encode})
        yield from repeats

    def _encode(self, shard: int, chunks: Sequence[str], part: str) -> None:
        manifest = self._manifest
        with _errors_told(self._work):
            encoder = self._shared.acquire(self._load)
        with (
            files.new_file(part) as local,
            shard_writer(local, manifest.format, manifest.embedding_dim) as write,
        ):
            for ids, texts in _windows(_distinct(chunks, shard, manifest.catalog)):
                write(ids, encoder.encode(texts))

    def _load(self) -> SavedEncoder:
        with files.local_folder(self._model) as folder:
            return SavedEncoder(folder)


def _distinct(
    chunks: Sequence[str],
    shard: int,
    paths: Sequence[str],
    repeats: list[dict[str, Any]] | None = None,
) -> Iterator[tuple[list[str], list[str]]]:
    """Yields ids and texts of a shard; of items with one id the first, the others to `repeats`."""
    first: dict[str, tuple[int, int, int | None]] = {}
    for items in read_shard(chunks, shard):
        ids, texts = [], []
        places = zip(items.file, items.row, items.line, strict=True)
        for item_id, text, place in zip(items.ids, items.texts, places, strict=True):
            earlier = first.setdefault(item_id, place)
            if earlier is place:
                ids.append(item_id)
                texts.append(text)
            elif repeats is not None:
                file, row, line = earlier
                there = f"row {row}" if line is None else f"line {line}"
                reason = f"item_id {item_id!r} is already in {paths[file]}, {there}"
                repeats.append(_rejected(paths[place[0]], place[1], place[2], reason))
        yield ids, texts


def _windows(
    parts: Iterator[tuple[list[str], list[str]]],
) -> Iterator[tuple[list[str], list[str]]]:
    """Cuts items anew, into windows of `_WINDOW`."""
    ids: list[str] = []
    texts: list[str] = []
    for more_ids, more_texts in parts:
        ids += more_ids
        texts += more_texts
        while len(ids) >= _WINDOW:
            yield ids[:_WINDOW], texts[:_WINDOW]
            ids, texts = ids[_WINDOW:], texts[_WINDOW:]
    if ids:
        yield ids, texts


def _rejected(path: str, row: int, line: int | None, reason: str) -> dict[str, Any]:
    place = {"file": path, "row": row} | ({} if line is None else {"line": line})
    return place | {"reason": reason}


def _done(work: str, shard: int) -> str:
    return FileSystems.join(work, f"done-{shard:05}.json")


@contextmanager
def _errors_told(work: str) -> Iterator[None]:
    """Leaves word of what is wrong with the input: runners hand on a text of their own."""
    try:
        yield
    except InputError as error:
        files.write_json(FileSystems.join(work, _ERROR_FILE), {"message": str(error)})
        raise


@contextmanager
def _watched(work: str, shards: int, progress: Progress | None) -> Iterator[None]:
    """Tells the progress while the block runs: runners do not say how far they are."""
    if progress is None:
        yield
        return
    tell, over = progress, threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            tell("encode shards", len(files.sizes(FileSystems.join(work, "done-*.json"))), shards)

    tell("encode shards", 0, shards)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    tell("encode shards", shards, shards)


def _catalog_files(patterns: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for pattern in patterns:
        found = sorted(files.sizes(pattern))
        if not found:
            raise InputError(f"cannot read {pattern}: there is no such file")
        paths += found
    return list(dict.fromkeys(paths))


def _check_output(output: str, manifest: EncodedManifest) -> None:
    """Raises InputError where the folder holds other things than what is about to be written."""
    path = FileSystems.join(output, MANIFEST_FILE)
    facts: Mapping[str, Any] | None = files.read_json(path)
    if facts is None:
        others = [name for name in files.sizes(FileSystems.join(output, "*")) if "/." not in name]
        if others:
            raise InputError(f"{output} holds other files, {others[0]} for one: name a new folder")
        return
    for name, difference in _LASTING.items():
        wanted = getattr(manifest, name)
        if facts.get(name) != wanted:
            raise InputError(
                f"{output} holds vectors {difference}: its manifest has {name} "
                f"{facts.get(name)!r}, and this is {wanted!r}. Name a new folder, or remove it"
            )


def _count_lines(path: str) -> int:
    with files.open_file(path) as file:
        return sum(1 for _ in file)
