"""Hyper-parameter search: which configuration does best on shot queries held out of training."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from towers.encoding import Progress
from towers.errors import InputError
from towers.retriever import Retriever
from training.atomic_file import atomic_file, write_json
from training.catalog import Catalog
from training.config import TrainConfig
from training.fit import adapt
from training.folds import HeldOutFolds
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer
from training.methods import require_gradient
from training.search_space import SearchSpace
from training.shots import draw_shots
from training.train import (
    LexicalIndexer,
    build_retriever,
    item_template,
    lexical_number,
    render_items,
)
from training.warm_up import warm_up

Told = Callable[[dict[str, Any]], None]


def tune(
    space: SearchSpace,
    catalog: Catalog,
    interactions: Interactions,
    output: Path,
    *,
    trials: int = 20,
    lexical: LexicalIndexer | None = None,
    progress: Progress | None = None,
    training_progress: Progress | None = None,
    told: Told | None = None,
) -> dict[str, Any]:
    """Searches over fields of a configuration, and writes the best one.

    Each trial trains without some of the shot queries and ranks these, as `training.auto` does,
    words and towers together: its score is the mean nDCG@10 over all held-out queries. The first
    trial is the configuration as it stands; the later ones come from a tree-structured Parzen
    estimator (Bergstra et al. 2011, NeurIPS). A search that was interrupted goes on when called
    again; one that is finished, with more trials.

    The best of many trials on few queries looks better than it is. Measure it on other queries.

    Args:
        space: the configuration and what is searched.
        catalog: the items.
        interactions: judged pairs.
        output: the folder: ``best.toml``, ``search.json``, and ``journal.log`` to go on from.
        trials: number of trials, those of earlier calls included.
        lexical: the lexical score; without one the towers alone are scored.
        progress: told (trials done, trials in all).
        training_progress: told (steps done, steps in all) of each training.
        told: called with each trial, as in ``search.json``.

    Returns:
        What ``search.json`` holds.

    Raises:
        InputError: Optuna is not installed, there are fewer than four queries with a positive or
            too few different items, the folder holds another search or other things, or no trial
            could be trained.
    """
    try:
        import optuna
        import tomli_w
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise InputError("a search needs Optuna: pip install 'fewshot-towers[tune]'") from error

    base = space.config({})
    objective = _Objective(base, catalog, interactions, lexical, training_progress)
    scores = objective.zero_shot(base)
    _open(output, space, catalog, interactions)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(output / "journal.log")))
    study = optuna.create_study(
        study_name="towers", storage=storage, direction="maximize", load_if_exists=True
    )
    # By number, so that a search that goes on does not draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))
    if not study.trials:
        study.enqueue_trial(space.start())

    def run(trial: optuna.Trial) -> float:
        chosen = space.suggest(trial)
        trial.set_user_attr("fields", chosen)
        folder = output / "trials" / str(trial.number)
        try:
            weight, ndcg = objective(space.config(chosen), folder)
        except InputError as error:
            trial.set_user_attr("refused", str(error))
            raise optuna.TrialPruned(str(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        trial.set_user_attr("lexical_weight", weight)
        return ndcg

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    done = len(study.get_trials(states=ended))
    if progress is not None:
        progress(min(done, trials), trials)
    for number in range(done, trials):
        study.optimize(run, n_trials=1)
        if told is not None:
            told(_facts(study.trials[-1]))
        if progress is not None:
            progress(number + 1, trials)
    shutil.rmtree(output / "trials", ignore_errors=True)

    found = [_facts(trial) for trial in study.get_trials(states=ended)]
    scored = [trial for trial in found if trial["ndcg"] is not None]
    if not scored:
        raise InputError(f"no trial could be trained; the last one: {found[-1]['refused']}")
    best = max(scored, key=lambda trial: trial["ndcg"])
    result = {
        "best": best,
        "zero_shot_ndcg": float(scores.mean()),
        "queries": len(scores),
        "trials": found,
    }
    write_json(output / "search.json", result)
    head = f"# nDCG@10 {best['ndcg']:.4f} on {len(scores)} held-out queries, trial {best['number']}"
    with atomic_file(output / "best.toml") as partial:
        given = tomli_w.dumps(_given(space.values(best["fields"])))
        partial.write_text(f"{head}\n{given}", "utf-8")
    return result


class _Objective:
    """The score of a configuration. What trials have in common is made once."""

    def __init__(
        self,
        base: TrainConfig,
        catalog: Catalog,
        interactions: Interactions,
        lexical: LexicalIndexer | None,
        progress: Progress | None,
    ) -> None:
        interactions.require_positives(base.min_grade)
        self.shots = interactions.positives(base.min_grade)
        self.judgements = interactions
        if base.shots is not None:
            self.shots = self.judgements = draw_shots(
                interactions, base.shots, seed=base.seed, min_grade=base.min_grade
            )
        self.judgements = self.judgements.of_queries(self.shots.queries)
        self.catalog, self.lexical, self.progress = catalog, lexical, progress
        self._towers: dict[str, tuple[Retriever, list[str], list[str], LexicalScorer | None]] = {}
        self._folds: dict[str, HeldOutFolds] = {}

    def zero_shot(self, config: TrainConfig) -> np.ndarray:
        """nDCG@10 of the held-out queries before training, ``[queries]``."""
        held_out = self.held_out(config)
        if not held_out.folds:
            raise InputError(
                f"{self.shots.path}: a search holds queries out of training: four queries or more "
                f"are needed, of different items; there are {len(self.shots.queries)}"
            )
        retriever = held_out.knowing(self.towers(config)[0])
        cosines = [held_out.cosine(retriever, fold) for fold in range(len(held_out.folds))]
        return held_out.ndcg(cosines)[1]

    def __call__(self, config: TrainConfig, folder: Path) -> tuple[float, float]:
        """The lexical weight and the mean nDCG@10 of the held-out queries."""
        assert config.method != "auto"
        require_gradient(config.method, config.fit)
        retriever, texts, titles, scorer = self.towers(config)
        held_out = self.held_out(config)
        fit = config.fit.model_copy(update={"held_out": 0.0, "interpolate": False})
        if config.warm_up == "catalog":
            retriever, _ = warm_up(
                retriever,
                texts,
                fit,
                titles=titles,
                folder=folder,
                seed=config.seed,
                progress=self.progress,
            )
        cosines = []
        for number in range(len(held_out.folds)):
            train, known = held_out.training_part(number)
            result = adapt(
                retriever,
                train,
                texts,
                fit,
                method=config.method,
                folder=folder / f"fold-{number}",
                judgements=known,
                titles=titles,
                lexical=scorer,
                seed=config.seed,
                progress=self.progress,
            )
            cosines.append(held_out.cosine(result.retriever, number))
        weight, ndcg, _ = held_out.ndcg(cosines)
        return weight, float(ndcg.mean())

    def towers(
        self, config: TrainConfig
    ) -> tuple[Retriever, list[str], list[str], LexicalScorer | None]:
        """Zero-shot towers, item texts, titles and the lexical score."""
        key = config.encoder.model_dump_json()
        if key not in self._towers:
            template = item_template(config.encoder, self.catalog)
            self._towers[key] = (
                build_retriever(config, template),
                render_items(template, self.catalog),
                [title or "" for title in self.catalog.column(template.columns[0])],
                None if self.lexical is None else self.lexical(template, self.catalog),
            )
        return self._towers[key]

    def held_out(self, config: TrainConfig) -> HeldOutFolds:
        """The folds of the queries."""
        key = f"{config.encoder.model_dump_json()} {config.lexical}"
        if key not in self._folds:
            _, texts, _, scorer = self.towers(config)
            self._folds[key] = HeldOutFolds(
                self.shots,
                texts,
                config.fit,
                judgements=self.judgements,
                lexical=scorer,
                weight=None if config.lexical == "auto" else lexical_number(config.lexical),
                seed=config.seed,
            )
        return self._folds[key]


def _open(output: Path, space: SearchSpace, catalog: Catalog, interactions: Interactions) -> None:
    """Starts a search in a folder, or takes up one of the same inputs."""
    fields = {name: repr(field) for name, field in space.fields.items()}
    inputs = [space.base, fields, catalog.sha256, interactions.sha256]
    identity = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    path = output / "study.json"
    if path.is_file():
        if json.loads(path.read_text("utf-8")).get("id") != identity:
            raise InputError(
                f"{output} holds a search of other data, settings or fields: name another "
                "--output, or remove it"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.glob("[!.]*"))):
        raise InputError(f"{output} exists and is no search: name another --output")
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "id": identity,
        "catalog": {"path": catalog.path, "sha256": catalog.sha256},
        "interactions": {"path": interactions.path, "sha256": interactions.sha256},
        "configuration": space.base,
        "search": fields,
    }
    write_json(path, facts)


def _facts(trial: Any) -> dict[str, Any]:
    """A trial of the study, ready for `json.dumps`."""
    refused = trial.user_attrs.get("refused")
    return {
        "number": trial.number,
        "ndcg": None if refused else trial.value,
        "lexical_weight": trial.user_attrs.get("lexical_weight"),
        "fields": trial.user_attrs.get("fields", {}),
        "refused": refused,
        "seconds": trial.duration.total_seconds(),
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without fields that are None, for which TOML has no word: their absence says it."""
    return {
        name: _given(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }
