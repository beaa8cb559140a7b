"""A training run without interactions: from a catalogue alone to a finished run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from towers.errors import InputError
from training.catalog import Catalog
from training.config import TrainConfig
from training.contexts import Contexts
from training.distillation import distil
from training.histories import Histories
from training.lexical_weight import PRIOR_WEIGHT, LexicalChoice
from training.methods import require_suitable
from training.reviews import Reviews
from training.run_folder import RunFolder
from training.stages import Stages, stage
from training.train import (
    AlsoFit,
    LexicalIndexer,
    build_retriever,
    item_template,
    lexical_number,
    render_items,
)
from training.warm_up import warm_up


def train_label_free(
    config: TrainConfig,
    catalog: Catalog,
    output: Path,
    *,
    lexical: LexicalIndexer | None = None,
    histories: Histories | None = None,
    reviews: Reviews | None = None,
    contexts: Contexts | None = None,
    also: AlsoFit | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Trains towers on what the catalogue says, and writes a run folder.

    ``zero-shot`` leaves them as they are, ``distilled`` teaches them to rank queries made from
    titles as words and towers together do; both after a warm-up where one is configured.
    ``auto`` is ``zero-shot``: nothing but judged pairs could say that training helps.

    Args:
        config: all settings; `shots` must not be set.
        catalog: the items.
        output: the run folder; an interrupted run of the same inputs is taken up.
        lexical: the lexical score; without one its weight is 0.
        histories: what `also` learns from, for the run to be known by.
        reviews: likewise.
        contexts: likewise.
        also: makes what else belongs to the run of the trained towers, ahead of its end.
        progress: told (stage, steps done, steps in all), of ``Warming up`` and ``Training``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: the settings need interactions, the item text names a column the catalogue
            lacks, the catalogue has too few words to train on, the encoder cannot be loaded, the
            folder is taken, or training diverged.
    """
    method = "zero-shot" if config.method == "auto" else config.method
    if method not in ("zero-shot", "distilled"):
        raise InputError(
            f"method {method} learns from pairs of a query and its item: give --interactions, or "
            "train without them by --method distilled or --warm-up catalog"
        )
    if config.shots is not None:
        raise InputError("shots are drawn from interactions: give --interactions, or leave shots")
    template = item_template(config.encoder, catalog)
    if template.attributes:
        raise InputError(
            f"what the attributes {', '.join(template.attributes)} say is learned from pairs of a "
            "query and its item: give --interactions, or leave --numeric, --categorical and --image"
        )
    texts = render_items(template, catalog)
    titles = [title or "" for title in catalog.column(template.columns[0])]
    if (method == "distilled" or config.warm_up == "catalog") and len(set(texts)) < 2:
        raise InputError(
            f"{catalog.path}: nothing to learn from: training needs two items of different text or "
            "more; --method zero-shot needs one"
        )
    weight = PRIOR_WEIGHT if config.lexical == "auto" else lexical_number(config.lexical)
    if method == "distilled" and lexical is None:
        raise InputError("method distilled needs the lexical score of the catalogue")
    retriever = build_retriever(config, template)  # before the folder is made: it may be refused
    require_suitable(retriever.model, "full", config.fit)

    run = RunFolder.open(
        output, config, catalog, None, histories, further={"reviews": reviews, "contexts": contexts}
    )
    metrics: dict[str, Any] = {
        "method": method,
        "items": len(catalog),
        "shots": 0,
        "shot_queries": 0,
        "warm_up": None,
        "distillation": None,
        "choice": None,
        "fit": None,
    }
    if config.warm_up == "catalog":
        retriever, record = warm_up(
            retriever,
            texts,
            config.fit,
            titles=titles,
            folder=output,
            seed=config.seed,
            progress=stage(progress, "Warming up"),
        )
        metrics["warm_up"] = record.as_dict()
    if method == "distilled":
        assert lexical is not None
        retriever, record = distil(
            retriever,
            None,
            texts,
            config.fit,
            titles=titles,
            lexical=lexical(template, catalog),
            # Words teach, whether or not they take part in the final score.
            lexical_weight=weight or PRIOR_WEIGHT,
            folder=output,
            seed=config.seed,
            progress=stage(progress, "Training"),
        )
        metrics["distillation"] = record.as_dict()
    metrics["lexical"] = LexicalChoice(
        weight if lexical is not None else 0.0, "no shots to choose it from"
    ).as_dict()
    if also is not None:
        metrics |= also(retriever)
    run.finish(retriever, None, metrics)
    return metrics
