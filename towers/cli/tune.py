"""``towers tune``: search for hyper-parameters by queries held out of the shots."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from towers.cli.lexical import lexical_scorer
from towers.cli.output import emit, json_option, progress_bars, say


@click.command("tune", short_help="Search for hyper-parameters by held-out shots.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--interactions", required=True, type=click.Path(), help="Interactions file.")
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(),
    help="TOML or JSON configuration with a table [search].",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Number of trials."
)
@click.option("--shots", type=int, help="Draw this many positive pairs; all if not given.")
@click.option("--seed", type=int, help="Decides draw, folds, order, dropout and the search.")
@click.option("--strict", is_flag=True, help="Refuse interactions with unknown items.")
@json_option
def command(
    catalog: str,
    interactions: str,
    config_path: str,
    output: Path,
    trials: int,
    shots: int | None,
    seed: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Search for hyper-parameters by queries held out of the shots; docs/tuning.md.

    Writes OUTPUT/best.toml for `towers train --config`. A search that was interrupted goes on when
    the same command is given again, one that is finished when given more --trials.
    """
    from training.config import read_values
    from training.search_space import SearchSpace

    given = {"shots": shots, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    space = SearchSpace.parse({**read_values(config_path), **options}, config_path)
    from training.catalog import Catalog
    from training.interactions import Interactions
    from training.tuning import tune

    products = Catalog.read(catalog)
    judgements = Interactions.read(interactions, products, strict=strict).with_one_spelling()
    with progress_bars() as progress:
        result = tune(
            space,
            products,
            judgements,
            output,
            trials=trials,
            lexical=lexical_scorer,
            progress=partial(progress, "Trials"),
            training_progress=partial(progress, "Training"),
            told=lambda trial: say(_line(trial)),
        )
    emit({"output": str(output), **result}, as_json, lambda: _report(output, result))


def _line(trial: dict[str, Any]) -> str:
    fields = ", ".join(f"{name} {_shown(value)}" for name, value in trial["fields"].items())
    score = trial["refused"] or f"nDCG@10 {trial['ndcg']:.4f}"
    return f"Trial {trial['number']}: {score} ({fields})"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _report(output: Path, result: dict[str, Any]) -> str:
    found = (
        f"nDCG@10 on {result['queries']} held-out queries: zero-shot "
        f"{result['zero_shot_ndcg']:.4f}; best of {len(result['trials'])} trials:\n"
        f"{_line(result['best'])}\n"
    )
    if result["best"]["ndcg"] <= result["zero_shot_ndcg"]:
        return f"{found}That is no better than the towers as they come: --method zero-shot"
    return f"{found}towers train --config {output / 'best.toml'} trains with it on all shots"
