"""Item vectors of a model folder: encoded once, kept beside the model, used by every verb."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from towers.cli.output import progress_bar
from towers.encoding import fast_dtype
from towers.retriever import Retriever
from training.atomic_file import atomic_file

PRECISIONS = ("float32", "bfloat16", "auto")
_CACHE = "item_vectors"

precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Of encoding the catalogue. bfloat16 doubles the speed where the processor has it and "
    "moves scores by up to .004 (cosine .9999); auto uses it there.",
)


def item_vectors(
    model_folder: Path,
    retriever: Retriever,
    texts: Sequence[str],
    precision: str,
    *,
    keep: bool = True,
) -> np.ndarray:
    """Encodes item texts, or reads the vectors where the same towers encoded the same texts before.

    Args:
        model_folder: the run folder; vectors are kept in ``item_vectors/`` inside it.
        retriever: the towers.
        texts: item texts.
        precision: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the processor computes
            with it directly.
        keep: whether vectors that were not there are written.

    Returns:
        float32 ``[N, d]``.
    """
    dtype = fast_dtype() if precision == "auto" else precision
    digest = hashlib.sha256(f"{retriever.fingerprint()} {dtype}".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = model_folder / _CACHE / f"{digest.hexdigest()[:32]}.npy"
    if path.is_file():
        return np.load(path)
    with progress_bar(f"Encoding {len(texts):,} items") as progress:
        vectors = retriever.encode_items(texts, dtype=dtype, progress=progress)
    if not keep:
        return vectors
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.save(file, vectors)
    return vectors
