"""Few-shot training of the fusion of attributes, on frozen towers, and whether it is worth having.

The head first, with the encoder frozen, then both together: training that begins with a random head
would distort the encoder (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from keras import ops
from scipy.optimize import minimize

from towers.attribute_fusion import AttributeFusion, FusionWeights
from towers.attributes import Attribute
from towers.encoding import Progress, fast_dtype
from towers.gradients import gradient
from towers.losses import in_batch_softmax
from towers.retriever import Retriever
from training.auto import LEAST_GAIN, expected_gain
from training.config import FitConfig
from training.folds import HeldOutFolds
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer

SPREADS = (0.02, 0.05, 0.12)
"""Standard deviations of a weight's prior that are tried; the first ones hold it to zero firmly."""

_NEGATIVES = 1000
_ITERATIONS = 40


@dataclass(frozen=True)
class FusionTrial:
    """How a fusion did on the queries held out of its training.

    Attributes:
        spread: of its weights' prior; 0 is the text alone.
        lexical_weight: the weight that its vectors go best with.
        ndcg: mean nDCG@10 of the fused score, words included where there is a lexical score.
        gain: mean over queries of the difference from the text alone.
        error: standard error of `gain`.
        expected: gain to be expected on other queries, drawn to nothing the more, the fewer queries
            there are.
    """

    spread: float
    lexical_weight: float
    ndcg: float
    gain: float = 0.0
    error: float = 0.0
    expected: float = 0.0


@dataclass(frozen=True)
class FusionChoice:
    """A fusion, or none, and why.

    Attributes:
        fusion: trained on all pairs; None where it is not worth having.
        helps: whether it is worth having.
        spread: of its weights' prior.
        of_folds: for each fold of `training.folds.HeldOutFolds` one that has not seen its queries;
            none without a fusion.
        reason: one line for people.
        queries: number of held-out queries behind the choice.
        trials: the text alone first.
    """

    fusion: AttributeFusion | None
    helps: bool
    spread: float
    of_folds: list[AttributeFusion]
    reason: str
    queries: int
    trials: list[FusionTrial]

    def as_dict(self) -> dict[str, Any]:
        """All but the weights, ready for `json.dumps`."""
        return {
            "fused": [] if self.fusion is None else [one.name for one in self.fusion.attributes],
            "reason": self.reason,
            "queries": self.queries,
            "trials": [asdict(trial) for trial in self.trials],
        }


def choose_fusion(
    retriever: Retriever,
    attributes: Sequence[Attribute],
    pairs: Interactions,
    items: Sequence[str],
    config: FitConfig,
    *,
    judgements: Interactions | None = None,
    lexical: LexicalScorer | None = None,
    weight: float | None = None,
    refuse: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> FusionChoice:
    """Trains fusions on some queries each, and keeps one if other queries gain from it.

    Held-out queries rank 5,000 items, words and towers together, as where a method is chosen
    (`training.auto.choose_method`). A fusion must gain more than .005 there, after the mean gain of
    few queries is drawn to zero.

    Args:
        retriever: the towers, without a fusion.
        attributes: what the catalogue says about the attributes.
        pairs: positive pairs.
        items: every catalogue row, rendered with its attributes.
        config: the recipe; its temperature is used.
        judgements: all judgements known of the queries of `pairs`; `pairs` if None.
        lexical: the lexical score; None for the towers alone.
        weight: of the lexical score, if it is not to be chosen.
        refuse: give no fusion where none is worth having; if false, the best of them.
        seed: decides folds and random items.
        progress: told about encoding the items.
    """
    held_out = HeldOutFolds(
        pairs, items, config, judgements=judgements, lexical=lexical, weight=weight, seed=seed
    )
    if not held_out.folds:
        reason = "too few queries to learn what attributes say: four or more are needed"
        return FusionChoice(None, False, 0.0, [], reason, 0, [])
    data = _FusionData(retriever, attributes, held_out, config.temperature, seed, progress)
    parts = [held_out.training_part(number)[0] for number in range(len(held_out.folds))]
    texts = [data.cosine(None, number) for number in range(len(parts))]
    lexical_weight, text_ndcg, _ = held_out.ndcg(texts)
    trials = [FusionTrial(0.0, lexical_weight, float(text_ndcg.mean()))]
    fitted: dict[float, list[AttributeFusion]] = {}
    for spread in SPREADS:
        fitted[spread] = [data.fit(part, spread) for part in parts]
        cosines = [data.cosine(fusion, number) for number, fusion in enumerate(fitted[spread])]
        lexical_weight, ndcg, _ = held_out.ndcg(cosines)
        expected, error = expected_gain(ndcg - text_ndcg, prior_gain=0.0)
        gain = float((ndcg - text_ndcg).mean())
        trials.append(
            FusionTrial(spread, lexical_weight, float(ndcg.mean()), gain, error, expected)
        )
    best = max(trials[1:], key=lambda trial: trial.expected)
    helps = best.expected > LEAST_GAIN
    reason = f"nDCG@10 on {len(held_out.queries)} queries held out of training: " + "; ".join(
        f"text {trial.ndcg:.3f}"
        if not trial.spread
        else f"fused ({trial.spread:g}) {trial.ndcg:.3f} ({trial.gain:+.3f} ± {trial.error:.3f})"
        for trial in trials
    )
    count = len(held_out.queries)
    if refuse and not helps:
        return FusionChoice(None, False, 0.0, [], reason, count, trials)
    fusion = data.fit(pairs, best.spread)
    return FusionChoice(fusion, helps, best.spread, fitted[best.spread], reason, count, trials)


def fit_fusion(
    fusion: AttributeFusion,
    queries: np.ndarray,
    vectors: np.ndarray,
    features: dict[str, np.ndarray],
    positives: np.ndarray,
    *,
    spread: float,
    temperature: float = 0.05,
) -> AttributeFusion:
    """The likeliest weights of a fusion, by queries and vectors of texts that stay as they are.

    Minimises the in-batch softmax loss of all queries over all candidates, summed, with a Gaussian
    prior of each weight: mean 0, standard deviation `spread`. There is no learning rate and no
    number of epochs to be chosen: L-BFGS goes to the minimum.

    Args:
        fusion: says which attributes; its weights are not looked at.
        queries: float32 ``[Q, d]``, unit rows.
        vectors: float32 ``[C, d]``, of the candidates' texts.
        features: of the candidates, see `towers.AttributeFusion`.
        positives: float32 ``[Q, C]``, weight of a positive, 0 for a negative.
        spread: see above.
        temperature: divisor of the cosines.
    """
    # Only rows of categories that occur: a table may have thousands.
    rows = np.unique(features["categories"][features["categories"] >= 0])
    local = np.where(features["categories"] >= 0, np.searchsorted(rows, features["categories"]), -1)
    features = {"values": features["values"], "categories": local}
    kernel_shape = tuple(fusion.kernel.shape)
    table_shape = max(1, len(rows)), fusion.dim
    split = int(np.prod(kernel_shape))

    def objective(weights: FusionWeights) -> tuple[Any, Any]:
        items = fusion.fuse(weights, vectors, features)
        losses = in_batch_softmax(queries, items, temperature=temperature, positives=positives)
        square = ops.sum(ops.square(weights.kernel)) + ops.sum(ops.square(weights.table))
        value = ops.sum(losses) + square / (2.0 * spread**2)
        return value, value

    def value_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slopes, value = gradient(objective, _weights(flat, split, kernel_shape, table_shape))
        slope = [ops.convert_to_numpy(one).ravel() for one in slopes]
        return float(value), np.concatenate(slope).astype(np.float64)

    start = np.zeros(split + int(np.prod(table_shape)))
    found = minimize(
        value_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    best = _weights(found.x, split, kernel_shape, table_shape)
    table = np.zeros(tuple(fusion.table.shape), np.float32)
    table[rows] = ops.convert_to_numpy(best.table)[: len(rows)]
    result = AttributeFusion(fusion.attributes, fusion.dim)
    result.set_weights([ops.convert_to_numpy(best.kernel), table])
    return result


def _weights(
    flat: np.ndarray, split: int, kernel_shape: tuple[int, ...], table_shape: tuple[int, ...]
) -> FusionWeights:
    flat = flat.astype(np.float32)
    return FusionWeights(
        ops.convert_to_tensor(flat[:split].reshape(kernel_shape)),
        ops.convert_to_tensor(flat[split:].reshape(table_shape)),
    )


class _FusionData:
    """Vectors of the shots' queries and of the items that they rank, made once."""

    def __init__(
        self,
        retriever: Retriever,
        attributes: Sequence[Attribute],
        held_out: HeldOutFolds,
        temperature: float,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self._held_out, self._temperature, self._seed = held_out, temperature, seed
        self._blank = AttributeFusion(attributes, retriever.embedding_dim)
        pool = held_out.pool
        self._items = retriever.encode_items(pool.texts, dtype=fast_dtype(), progress=progress)
        self._features = retriever.with_fusion(self._blank).read_attributes(pool.texts)
        queries = held_out.pairs.queries
        self._vector_of = dict(zip(queries, retriever.encode_queries(queries), strict=True))

    def cosine(self, fusion: AttributeFusion | None, number: int) -> np.ndarray:
        """Cosines of a fold's queries and all items: ``[queries, items]``."""
        items = self._items
        if fusion is not None:
            items = ops.convert_to_numpy(fusion(items, self._features))
        return self._queries(self._held_out.fold_queries(number)) @ items.T

    def fit(self, pairs: Interactions, spread: float) -> AttributeFusion:
        """A fusion trained on pairs, with random items among their negatives."""
        rows = self._held_out.pool.rows
        own = np.searchsorted(rows, pairs.item_row)
        drawn = np.random.default_rng([self._seed, 7]).permutation(len(rows))[:_NEGATIVES]
        chosen = np.union1d(own, drawn)
        positives = np.zeros((len(pairs.queries), len(chosen)), np.float32)
        positives[pairs.query_row, np.searchsorted(chosen, own)] = pairs.weight
        assert self._features is not None
        return fit_fusion(
            self._blank,
            self._queries(pairs.queries),
            self._items[chosen],
            {name: values[chosen] for name, values in self._features.items()},
            positives,
            spread=spread,
            temperature=self._temperature,
        )

    def _queries(self, queries: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector_of[query] for query in queries])
