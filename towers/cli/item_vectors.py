"""Item vectors of a model folder: encoded once, kept beside the model, used by every verb."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from towers.cli.output import progress_bar
from towers.encoding import fast_dtype
from towers.item_text import text_of
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
    """Encodes item texts, or makes the vectors of what towers like these encoded before.

    Kept is what the item tower makes ahead of a projection and of attributes: towers that were not
    trained, or by a linear map alone, have it in common. So it is also looked for in the runs that
    lie beside this one.

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
    dtype = _dtype(precision)
    vectors = known_vectors(model_folder, retriever, texts, precision)
    if vectors is None:
        with progress_bar(f"Encoding {len(texts):,} items") as progress:
            vectors = retriever.encode_base(texts, dtype=dtype, progress=progress)
        if keep:
            path = model_folder / _CACHE / _file_name(retriever, texts, dtype)
            with atomic_file(path) as partial, partial.open("wb") as file:
                np.save(file, vectors)
    return retriever.knowing(texts, vectors).encode_items(texts, dtype=dtype)


def known_vectors(
    model_folder: Path, retriever: Retriever, texts: Sequence[str], precision: str = "auto"
) -> np.ndarray | None:
    """What `towers.Retriever.encode_base` made of these texts before, for a run or one beside it.

    Returns:
        float32 ``[N, hidden]``; None where there is nothing.
    """
    name = _file_name(retriever, texts, _dtype(precision))
    beside = sorted(model_folder.absolute().parent.glob(f"*/{_CACHE}/{name}"))
    for path in (model_folder / _CACHE / name, *beside):
        if path.is_file():
            return np.load(path)
    return None


def _dtype(precision: str) -> str:
    return fast_dtype() if precision == "auto" else precision


def _file_name(retriever: Retriever, texts: Sequence[str], dtype: str) -> str:
    digest = hashlib.sha256(f"{retriever.base_fingerprint()} {dtype}".encode())
    for text in texts:
        digest.update(text_of(text).encode() + b"\0")
    return f"{digest.hexdigest()[:32]}.npy"
