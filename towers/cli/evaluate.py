"""``towers evaluate``: measure retrieval quality over the whole catalogue."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.histories import (
    ContextOptions,
    contexts_options,
    discount_option,
    evaluate_histories,
    evaluation_report,
    histories_option,
    read_histories,
    read_reviews,
    reviews_option,
)
from towers.cli.item_vectors import item_vectors, precision_option
from towers.cli.lexical import (
    Lexical,
    hybrid_top_k,
    lexical_fields,
    lexical_option,
    lexical_weight,
)
from towers.cli.output import emit, json_option, progress_bar, say
from towers.errors import InputError

if TYPE_CHECKING:
    from training.catalog import Catalog
    from training.interactions import Interactions
    from training.run_folder import RunFolder


def _gains(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        gains = {grade: float(gain) for grade, gain in enumerate(value.split(","))}
    except ValueError:
        gains = {}
    if not gains or not all(0 <= gain < math.inf for gain in gains.values()):
        raise click.BadParameter("expected one number a grade, 0 or more, as in 0,1,10,100")
    return gains


@click.command("evaluate", short_help="Measure retrieval quality over the whole catalogue.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--interactions", type=click.Path(), help="Judged queries.")
@histories_option("Users whose last items are to be recommended, in place of judged queries.")
@reviews_option()
@contexts_options
@discount_option()
@click.option("--measures", help="Comma-separated, as in nDCG@10,R(rel=2)@100,RR@10.")
@click.option("--gains", callback=_gains, help="nDCG gain of grades 0,1,...; the grades if absent.")
@click.option(
    "--min-grade",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Lowest relevant grade.",
)
@click.option("--run-file", type=click.Path(path_type=Path), help="Write a TREC run file.")
@click.option(
    "--qrels-file",
    type=click.Path(path_type=Path),
    help="Write the judgements of queries with a positive as TREC qrels, numbered as in the run.",
)
@click.option(
    "--depth", type=click.IntRange(1), default=100, show_default=True, help="Items a query."
)
@click.option("--report", type=click.Path(path_type=Path), help="Folder for per-query results.")
@lexical_option("As trained if absent.")
@precision_option
@click.option("--strict", is_flag=True, help="Refuse interactions with unknown items.")
@json_option
def command(
    model: Path,
    catalog: str,
    interactions: str | None,
    histories: str | None,
    reviews: str | None,
    users: str | None,
    user_columns: tuple[str, ...],
    context: tuple[str, ...],
    popularity_discount: float,
    measures: str | None,
    gains: dict[int, float] | None,
    min_grade: int,
    run_file: Path | None,
    qrels_file: Path | None,
    depth: int,
    report: Path | None,
    lexical: Lexical,
    precision: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Measure retrieval quality over the whole catalogue.

    Items without a judgement count as not relevant. Queries without a positive are left out of the
    means and counted. With --histories, the last item of each user is to be found from all before
    it, from what the user had written by then (--reviews), and from what is known of the user and
    the moment (--users, --context); measures are also given by group of each column of --users.
    """
    if (interactions is None) == (histories is None):
        raise click.UsageError("give either --interactions or --histories")
    if reviews and not histories:
        raise click.UsageError("--reviews needs --histories")
    if popularity_discount and not histories:
        raise click.UsageError("--popularity-discount needs --histories")
    known = ContextOptions(users, user_columns, context)
    known.check(histories)
    if histories is not None:
        _evaluate_histories(
            model,
            catalog,
            histories,
            reviews,
            known,
            popularity_discount,
            report,
            precision,
            strict,
            as_json,
        )
        return
    assert interactions is not None
    from training.catalog import Catalog
    from training.evaluation import DEFAULT_MEASURES, Measure, evaluate
    from training.interactions import Interactions
    from training.run_folder import RunFolder
    from training.search import Run, top_k
    from training.train import render_items
    from training.trec import write_qrels, write_run

    names = [name.strip() for name in measures.split(",")] if measures else list(DEFAULT_MEASURES)
    cutoffs = [Measure.parse(name).cutoff or 0 for name in names]
    run_folder = RunFolder.existing(model)
    products = Catalog.read(catalog)
    judgements = Interactions.read(interactions, products, strict=strict)
    if judgements.unknown_items.rows:
        say(f"left out: {judgements.unknown_items}")
    judgements.require_positives(min_grade)
    trained = _trained_queries(run_folder, products, judgements)
    if trained:
        say(
            f"note: the run was trained on {trained:,} of these {len(judgements.queries):,} "
            "queries; it finds them better than new ones"
        )
    for option, file in (("--run-file", run_file), ("--qrels-file", qrels_file)):
        if file is not None and file.is_dir():
            raise InputError(f"{option} {file} is a folder; name a file")
    if report is not None and report.exists() and not report.is_dir():
        raise InputError(f"--report {report} is a file; name a folder")
    retriever = run_folder.load_retriever()
    items = item_vectors(model, retriever, render_items(retriever.template, products), precision)
    with progress_bar(f"Encoding {len(judgements.queries):,} queries") as progress:
        queries = retriever.encode_queries(judgements.queries, progress=progress)
    weight = lexical_weight(lexical, run_folder)
    deepest = max(depth, *cutoffs)
    if weight:
        fields = lexical_fields(retriever.template, products)
        with progress_bar(f"Ranking {len(products):,} items for each query") as progress:
            scores, rows = hybrid_top_k(
                judgements.queries, queries, items, fields, weight, deepest, progress
            )
    else:
        scores, rows = top_k(queries, items, deepest)
    run = Run(judgements.queries, rows, scores)
    result = evaluate(run, judgements, products, measures=names, gains=gains, min_grade=min_grade)
    facts = {**result.as_dict(), "lexical_weight": weight, "precision": precision}
    facts["trained_queries"] = trained
    if run_file is not None:
        write_run(run_file, run, products.item_ids, depth=depth)
    if qrels_file is not None:
        qrels = judgements.qrels().items()
        # Those without a positive would count as 0 there, and are left out of the means here.
        counted = {query: of for query, of in qrels if max(of.values()) >= min_grade}
        write_qrels(qrels_file, counted, run.queries)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        result.write_per_query(report / "per_query.csv")
        facts_file = report / "metrics.json"
        facts_file.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    emit(facts, as_json, lambda: _report(facts))


def _trained_queries(run: RunFolder, catalog: Catalog, judgements: Interactions) -> int:
    """How many of the queries the run was trained on."""
    if not run.is_fitted:
        return 0
    try:
        shots = run.shots(catalog)
    except InputError:  # of another catalogue
        return 0
    return 0 if shots is None else len(judgements.of_queries(shots.queries).queries)


def _evaluate_histories(
    model: Path,
    catalog: str,
    histories: str,
    reviews: str | None,
    known: ContextOptions,
    popularity_discount: float,
    report: Path | None,
    precision: str,
    strict: bool,
    as_json: bool,
) -> None:
    from training.catalog import Catalog

    products = Catalog.read(catalog)
    people = read_histories(histories, products, strict, known.of_file)
    written = read_reviews(reviews, products, people, strict) if reviews else None
    facts = evaluate_histories(
        model, people, written, known.read(people), precision, popularity_discount
    )
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    emit(facts, as_json, lambda: evaluation_report(facts))


def _report(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result["measures"].items():
        interval = value["interval_95"]
        spread = "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
        lines.append(f"{name:<14} {value['mean']:.4f}{spread}  over {value['queries']} queries")
    lines.append(
        f"Lexical weight {result['lexical_weight']:g}. {result['queries']} queries, "
        f"{result['queries_without_positives']} without a positive; "
        "brackets: 95% bootstrap interval over queries"
    )
    return "\n".join(lines)
