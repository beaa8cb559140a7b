"""Token ids against the `tokenizers` library on real catalogues, and the speed of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tokenizers
from reporting import arguments, esci, homedepot, report

from towers import DEFAULT_PRESET, Tokenizer
from towers.checkpoint import resolve_preset

CHUNK = 20_000


def main() -> None:
    """Runs the benchmark."""
    options = arguments(main.__doc__ or "").parse_args()
    reference = tokenizers.Tokenizer.from_file(
        str(Path(resolve_preset(DEFAULT_PRESET)) / "tokenizer.json")
    )
    reference.no_padding()
    reference.no_truncation()
    ours = Tokenizer.from_preset(DEFAULT_PRESET)
    tokenize = tf.function(
        ours.tokenize, input_signature=[tf.TensorSpec([None], tf.string)]
    ).get_concrete_function()
    catalog, texts = esci(options.data)
    columns = [name for name in catalog.table.column_names if name != "item_id"]
    fields = [text for name in columns for text in catalog.column(name) if text]
    code_points = [f"a{chr(c)}b" for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    sets = {
        "homedepot titles": homedepot(options.data)[1],
        "esci item texts": texts,
        "esci single fields": fields,
        "every code point": code_points,
    }
    rows = []
    for name, strings in sets.items():
        reference_seconds, expected = _timed(
            lambda chunk: [e.ids[1:-1] for e in reference.encode_batch(chunk)], strings
        )
        seconds, found = _timed(lambda chunk: tokenize(tf.constant(chunk)).to_list(), strings)
        rows.append(
            {
                "texts": name,
                "count": len(strings),
                "different": sum(a != b for a, b in zip(expected, found, strict=True)),
                "ours, texts/s": round(len(strings) / seconds),
                "tokenizers, texts/s": round(len(strings) / reference_seconds),
            }
        )
    report("tokenization", "Token ids against the tokenizers library", rows)


def _timed(encode: Callable[[list[str]], list[Any]], strings: list[str]) -> tuple[float, list]:
    encode(strings[:100])
    start = time.perf_counter()
    result = [ids for chunk in _chunks(strings) for ids in encode(chunk)]
    return time.perf_counter() - start, result


def _chunks(strings: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(strings), CHUNK):
        yield strings[start : start + CHUNK]


if __name__ == "__main__":
    main()
