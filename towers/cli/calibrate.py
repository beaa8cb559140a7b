"""``towers calibrate``: turn retrieval scores into click probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.head_output import (
    measures_line,
    require_csv,
    require_new_folder,
    require_options,
    write_predictions,
)
from towers.cli.item_vectors import item_vectors, precision_option
from towers.cli.lexical import lexical_scorer, lexical_weight
from towers.cli.output import emit, json_option, progress_bar, say

if TYPE_CHECKING:
    import numpy as np

    from towers.retriever import Retriever
    from training.heads.click_pairs import ClickPairs

_TO_FIT = ("click_column", "min_grade", "numeric", "categorical", "folds", "seed")


@click.command("calibrate", short_help="Turn scores into click probabilities.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option(
    "--interactions", required=True, type=click.Path(), help="Queries with items shown for them."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the head; with --head a CSV file for the pairs and their probabilities.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Run folder.")
@click.option(
    "--click-column",
    default="grade",
    show_default=True,
    help="Column of --interactions that says how a shown item was received.",
)
@click.option(
    "--min-grade",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Lowest value in it that is a click.",
)
@click.option(
    "--numeric", multiple=True, help="Column of numbers, of either file, to use as well; any times."
)
@click.option("--categorical", multiple=True, help="Column of names to use as well; any times.")
@click.option(
    "--folds",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Parts of the queries to test on, with heads fitted on the others; 0 for no test.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the folds.")
@click.option("--head", type=click.Path(path_type=Path), help="Use this head instead of fitting.")
@precision_option
@click.option("--strict", is_flag=True, help="Refuse interactions with unknown items.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    catalog: str,
    interactions: str,
    output: Path,
    model: Path | None,
    click_column: str,
    min_grade: int,
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    folds: int,
    seed: int,
    head: Path | None,
    precision: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Turn retrieval scores into click probabilities.

    Without --head, a head on the model's scores is fitted to the interactions, which need items
    that were shown and clicked and items that were shown and not clicked (grade 0). It is tested
    by cross-validation and written to the folder OUTPUT.

    With --head, the interactions are written to the CSV file OUTPUT with a probability each. Where
    the click column is there, the head is measured on them.
    """
    if head is not None:
        require_options(context, "with --head", barred=_TO_FIT)
        _predict(catalog, interactions, output, head, model, precision, strict, as_json)
        return
    require_options(context, "without --head", needed=("model",))
    if folds == 1:
        raise click.UsageError("--folds is 0, or 2 and more", context)
    require_new_folder(output)
    assert model is not None

    from training.atomic_file import write_json
    from training.catalog import Catalog
    from training.heads.click_model import fit_click_model
    from training.heads.click_pairs import ClickPairs
    from training.run_folder import RunFolder

    run = RunFolder.existing(model)
    products = Catalog.read(catalog)
    pairs = ClickPairs.read(
        interactions, products, click_column=click_column, min_grade=min_grade, strict=strict
    )
    clicked = pairs.require_clicks(click_column)
    _say_what_there_is(pairs)
    retriever = run.load_retriever()
    weight = lexical_weight(None, run)
    scores = _scores(pairs, retriever, model, weight, precision)
    with progress_bar("Testing") as update:
        fitted, quality = fit_click_model(
            pairs,
            scores,
            retriever,
            model=str(model),
            lexical_weight=weight,
            numeric=numeric,
            categorical=categorical,
            click_column=click_column,
            min_grade=min_grade,
            folds=folds,
            seed=seed,
            progress=update,
        )
    fitted.save(output)
    facts = {
        "output": str(output),
        "pairs": len(pairs),
        "clicks": int(clicked.sum()),
        "lexical_weight": weight,
        "head": fitted.head.as_dict(),
        "folds": folds,
        "seed": seed,
        "data": {
            "catalog": {"path": products.path, "sha256": products.sha256},
            "interactions": {"path": pairs.path, "sha256": pairs.sha256},
        },
        "quality": {name: one.as_dict() for name, one in quality.items()},
    }
    write_json(output / "metrics.json", facts)

    def report() -> str:
        lines = []
        if quality:
            lines = [
                f"head: {measures_line(quality['head'].measures)}",
                f"always the mean: {measures_line(quality['constant'].measures)}",
                f"mean of {folds} folds of queries ± 95% interval",
            ]
        return "\n".join([*lines, f"Head fitted on {len(pairs):,} pairs, written to {output}"])

    emit(facts, as_json, report)


def _predict(
    catalog: str,
    interactions: str,
    output: Path,
    head: Path,
    model: Path | None,
    precision: str,
    strict: bool,
    as_json: bool,
) -> None:
    from training.catalog import Catalog
    from training.heads.click_model import ClickModel, both_classes
    from training.heads.click_pairs import ClickPairs
    from training.heads.measures import measure
    from training.run_folder import RunFolder

    require_csv(output)
    fitted = ClickModel.load(head)
    where = model or Path(fitted.model)
    retriever = RunFolder.existing(where).load_retriever()
    fitted.require_towers(retriever, str(where))
    products = Catalog.read(catalog)
    pairs = ClickPairs.read(
        interactions,
        products,
        click_column=fitted.click_column,
        min_grade=fitted.min_grade,
        strict=strict,
    )
    _say_what_there_is(pairs)
    scores = _scores(pairs, retriever, where, fitted.lexical_weight, precision)
    features = pairs.features(scores, fitted.numeric, fitted.categorical)
    probability = fitted.head.probabilities(features)
    columns = {"click_probability": probability.round(6).tolist()}
    write_predictions(output, pairs.table, pairs.row.tolist(), columns)
    facts: dict[str, Any] = {
        "output": str(output),
        "pairs": len(pairs),
        "rows_with_unknown_items": pairs.unknown_items.rows,
        "mean_click_probability": float(probability.mean()),
    }
    if pairs.clicked is not None:
        facts["measures"] = measure(
            both_classes(probability), pairs.clicked.astype(int), pairs.weight
        )

    def report() -> str:
        lines = [f"{len(pairs):,} pairs, written to {output}"]
        if "measures" in facts:
            lines.append(measures_line(facts["measures"]))
        return "\n".join(lines)

    emit(facts, as_json, report)


def _scores(
    pairs: ClickPairs, retriever: Retriever, model: Path, weight: float, precision: str
) -> dict[str, np.ndarray]:
    """What the retrieval score says of the pairs."""
    from training.heads.score_features import score_features
    from training.train import render_items

    items = item_vectors(
        model, retriever, render_items(retriever.template, pairs.catalog), precision
    )
    with progress_bar(f"Encoding {len(pairs.queries):,} queries") as update:
        queries = retriever.encode_queries(pairs.queries, progress=update)
    with progress_bar(f"Scoring {len(pairs):,} pairs") as update:
        return score_features(
            pairs.queries,
            queries,
            items,
            pairs.query_row,
            pairs.item_row,
            lexical=lexical_scorer(retriever.template, pairs.catalog) if weight else None,
            lexical_weight=weight,
            progress=update,
        )


def _say_what_there_is(pairs: ClickPairs) -> None:
    say(f"{len(pairs):,} pairs of {len(pairs.queries):,} queries")
    if pairs.unknown_items.rows:
        say(f"left out: {pairs.unknown_items}")
