"""Recommendations from histories: what was learned of users, and its use over a catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import scipy.sparse as sp

from towers.context_lifts import ContextColumn, ContextLifts
from towers.context_text import Context
from towers.errors import InputError
from towers.item_neighbours import ItemNeighbours, word_neighbours
from towers.review_sentiment import ReviewSentiment
from towers.user_tower import UserTower

_TOWER_FILE = "user_tower.keras"
_ARRAYS_FILE = "items.npz"
_SETTINGS_FILE = "recommender.json"
_USERS_AT_A_TIME = 256
_LENDERS = 5
_SHARPNESS = 8

REVIEWS_TO_TEXT = 0.3
"""Weight of the reviews, as a multiple of the text's, where there were none to fit it on."""


@dataclass(frozen=True)
class BlendWeights:
    """Weights of the parts of the score; with them it is a logit of "this item comes next".

    Attributes:
        text: of the cosine of user vector and item embedding.
        co_occurrence: of what the histories say of items taken by the same users.
        words: of the words that the texts of items share.
        popularity: of `log(1 + events)` of an item.
        query: of the score of a query, where one is given with the history.
        reviews: of the dot product of a user's reviews and the item embedding.
    """

    text: float
    co_occurrence: float = 0.0
    words: float = 0.0
    popularity: float = 0.0
    query: float = 0.0
    reviews: float = 0.0


@dataclass
class Recommender:
    """What was learned from histories. It holds no embeddings: `over` brings it to a catalogue.

        score[j] = text * <user, e_j> + sum_p r_p (co_occurrence * C[p, j] + words * W[p, j])
                   + popularity * log(1 + n_j) + reviews * sum_r s_r <v_r, e_j> / sum_r |s_r|
                   + sum_c context_c * L[c, j]

    `user` is the vector that `UserTower` makes of the embeddings of the past items `p`, `C` the
    co-occurrence of items in histories, `W` the overlap of the items' words, `n_j` how often an
    item was taken, lately above all, and `r_p` falls by `decay` with each newer item and sums to 1.
    `v_r` are the vectors of the reviews that the user wrote, as a query tower makes them, and `s_r`
    in [-.25, 1] says how pleased they were: what is like the disliked is pushed away. `L[c, j]` is
    how much more often the item was taken with the value that column `c` has for the user, or for
    the moment, than with others.

    Attributes:
        user_tower: the attention head.
        weights: of the parts.
        item_ids: the items that histories told something of, `[n]`.
        co_occurrence: their neighbours, as rows of `item_ids`.
        counts: how often each was taken, int64 `[n]`.
        recent: the same, what was long ago counting less, float32 `[n]`.
        sentiment: of reviews.
        decay: share of its weight that a past item keeps with each newer one.
        max_history: newest items of a history that are looked at.
        encoder_fingerprint: of the item tower; see `towers.Retriever.fingerprint`.
        context: of columns of users and events, over `item_ids`.
        popularity_discount: what is popular is recommended less to who has a history: this many
            times the logarithm of how often an item was taken comes off its score. 1 takes
            popularity out of logits (logQ: Yi et al. 2019, "Sampling-bias-corrected neural
            modeling"). How likely an item is the next says no less for that.

    Example:
        >>> recommender = Recommender.load("runs/people/recommender")
        >>> shop = recommender.over(item_ids, item_texts, retriever.encode_items(item_texts))
        >>> shop.recommend([["mug", "flask"], []], k=5)
    """

    user_tower: UserTower
    weights: BlendWeights
    item_ids: list[str]
    co_occurrence: ItemNeighbours
    counts: np.ndarray
    recent: np.ndarray
    sentiment: ReviewSentiment
    decay: float = 0.7
    max_history: int = 50
    encoder_fingerprint: str = ""
    context: ContextLifts = field(default_factory=ContextLifts.none)
    popularity_discount: float = 0.0

    def review_vectors(
        self, vectors: Sequence[np.ndarray], ratings: Sequence[Sequence[float]]
    ) -> np.ndarray:
        """What users wrote, as one vector each; see `CatalogRecommender.recommend`.

        Args:
            vectors: for each user float32 `[reviews, d]`, of `towers.Retriever.encode_reviews`.
            ratings: for each user a rating from 1 to 5 for each review; 0 or NaN for none, and
                then the text tells how pleased its author was.

        Returns:
            float32 `[users, d]`: `sum_r s_r v_r / sum_r |s_r|`, zeros for nothing.

        Raises:
            InputError: vectors and ratings are not as many, or the vectors of another width.
        """
        width = self.user_tower.embedding_dim
        if [of.shape for of in vectors] != [(len(given), width) for given in ratings]:
            raise InputError(
                f"the reviews of each user need vectors [reviews, {width}] and as many ratings, "
                f"not {[of.shape for of in vectors]} and {[len(given) for given in ratings]}"
            )
        return self.sentiment.user_vectors(
            vectors, [np.asarray(given, np.float32) for given in ratings]
        )

    def over(
        self, item_ids: Sequence[str], item_texts: Sequence[str], item_embeddings: np.ndarray
    ) -> CatalogRecommender:
        """Makes the recommender ready for a catalogue, which need not be that of its training.

        An item that no history told of is scored by its text and words. It borrows the
        co-occurrences and the lifts of contexts of the items nearest to it in text (`lending`), and
        its popularity is taken to be the mean of the others.

        Args:
            item_ids: `N` ids, distinct.
            item_texts: texts of the items, the template filled in.
            item_embeddings: float32 `[N, d]`, of the texts.

        Raises:
            InputError: numbers of ids, texts and embeddings differ, or the embeddings are not as
                wide as those of the training.
        """
        expected = (len(item_ids), self.user_tower.embedding_dim)
        if item_embeddings.shape != expected or len(item_texts) != len(item_ids):
            raise InputError(
                f"{len(item_ids)} items need embeddings {expected} and as many texts, not "
                f"{item_embeddings.shape} and {len(item_texts)}"
            )
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        to = np.array([row_of.get(item_id, -1) for item_id in self.item_ids], np.int64)
        taken = np.zeros(len(item_ids), np.float32)
        taken[to[to >= 0]] = self.recent[to >= 0]
        counts = np.zeros(len(item_ids), np.float32)
        counts[to[to >= 0]] = self.counts[to >= 0]
        lent = lending(np.asarray(item_embeddings, np.float32), taken > 0)
        together = self.co_occurrence.moved(to, len(item_ids)).matrix()
        matrix = self.weights.co_occurrence * (lent.T @ together @ lent)
        if self.weights.words:
            matrix = matrix + self.weights.words * word_neighbours(item_texts).matrix()
        neighbours = ItemNeighbours.largest(matrix.tocsr(), len(item_ids))
        return CatalogRecommender(
            self,
            list(item_ids),
            np.asarray(item_embeddings, np.float32),
            neighbours,
            self.weights.popularity * popularity_prior(taken),
            self.popularity_discount * popularity_prior(counts),
            self.context.moved(to, lent),
        )

    def facts(self) -> dict[str, Any]:
        """What it is made of, ready for `json.dumps`."""
        context = {"context": self.context.facts()} if self.context.columns else {}
        return context | {
            "weights": asdict(self.weights),
            "decay": self.decay,
            "max_history": self.max_history,
            "popularity_discount": self.popularity_discount,
            "items_in_histories": len(self.item_ids),
            "co_occurrences": int(np.count_nonzero(self.co_occurrence.weights)),
        }

    def save(self, folder: str | Path) -> None:
        """Writes the recommender into a folder."""
        lifts = self.context.lifts.tocoo()
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.user_tower.save(path / _TOWER_FILE)
        with (path / _ARRAYS_FILE).open("wb") as file:
            np.savez_compressed(
                file,
                item_ids=np.array(self.item_ids, dtype=str),
                counts=self.counts,
                recent=self.recent,
                rows=self.co_occurrence.rows,
                weights=self.co_occurrence.weights,
                sentiment=self.sentiment.kernel,
                context_values=np.array(self.context.values, dtype=str),
                context_rows=lifts.row,
                context_items=lifts.col,
                context_lifts=lifts.data,
            )
        settings = {
            "weights": asdict(self.weights),
            "decay": self.decay,
            "max_history": self.max_history,
            "popularity_discount": self.popularity_discount,
            "encoder_fingerprint": self.encoder_fingerprint,
            "sentiment_bias": self.sentiment.bias,
            "context": {name: of.facts() for name, of in self.context.columns.items()},
        }
        (path / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """Reads what `save` wrote, also before there were reviews, recent events and contexts.

        Raises:
            InputError: the folder holds no recommender, or a file in it is damaged.
        """
        path = Path(folder)
        for name in (_TOWER_FILE, _ARRAYS_FILE, _SETTINGS_FILE):
            if not (path / name).is_file():
                raise InputError(f"{str(folder)!r} holds no recommender: there is no {name}")
        try:
            settings = json.loads((path / _SETTINGS_FILE).read_text("utf-8"))
            tower = keras.saving.load_model(path / _TOWER_FILE, compile=False)
            weights = settings.pop("weights")
            weights.setdefault("reviews", REVIEWS_TO_TEXT * weights["text"])
            sentiment = ReviewSentiment.unlearned(tower.embedding_dim)
            bias = settings.pop("sentiment_bias", None)
            columns = settings.pop("context", {})
            with np.load(path / _ARRAYS_FILE) as arrays:
                if bias is not None:
                    sentiment = ReviewSentiment(arrays["sentiment"], bias)
                recent = "recent" if "recent" in arrays else "counts"
                return cls(
                    tower,
                    BlendWeights(**weights),
                    arrays["item_ids"].tolist(),
                    ItemNeighbours(arrays["rows"], arrays["weights"]),
                    arrays["counts"],
                    arrays[recent].astype(np.float32),
                    sentiment,
                    context=_context(columns, arrays),
                    **settings,
                )
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"recommender {str(folder)!r} is damaged: {error}") from error


def _context(columns: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ContextLifts:
    if not columns:
        return ContextLifts.none()
    values = arrays["context_values"].tolist()
    entries = arrays["context_lifts"], (arrays["context_rows"], arrays["context_items"])
    lifts = sp.csr_matrix(entries, shape=(len(values), len(arrays["item_ids"])), dtype=np.float32)
    return ContextLifts(
        {name: ContextColumn.of(facts) for name, facts in columns.items()}, values, lifts
    )


@dataclass(frozen=True)
class CatalogRecommender:
    """A recommender over one catalogue; called, it scores all items for histories of rows.

    Attributes:
        recommender: what was learned.
        item_ids: the catalogue, `N` ids.
        embeddings: float32 `[N, d]`.
        neighbours: co-occurrence and words together, weighed.
        prior: float32 `[N]`, the part of popularity, weighed.
        discount: float32 `[N]`, what comes off the scores of who has a history.
        context: lifts over the catalogue, not weighed.
    """

    recommender: Recommender
    item_ids: list[str]
    embeddings: np.ndarray
    neighbours: ItemNeighbours
    prior: np.ndarray
    discount: np.ndarray
    context: ContextLifts

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _matrix(self) -> sp.csr_matrix:
        return self.neighbours.matrix()

    def __call__(
        self,
        histories: Sequence[np.ndarray],
        query_scores: np.ndarray | None = None,
        review_vectors: np.ndarray | None = None,
        contexts: Sequence[Context] | None = None,
        *,
        discounted: bool = True,
    ) -> np.ndarray:
        """Scores every item for every user.

        Args:
            histories: rows of the catalogue, int `[events]` each, oldest first; -1 is an unknown
                item.
            query_scores: float32 `[users, N]`, what `search` would score; a row of NaN for a user
                without a query. Where there is one, popularity does not count.
            review_vectors: float32 `[users, d]`, of `Recommender.review_vectors`; zeros for a user
                who wrote nothing.
            contexts: of each user column to value, of the user or of the moment; unknown columns
                and values are passed over.
            discounted: whether popularity is discounted, where it is at all.

        Returns:
            float32 `[users, N]`: logits; items of the history are scored like any other.

        Raises:
            InputError: the review vectors have another shape, or contexts are of other users.
        """
        expected = (len(histories), self.embeddings.shape[1])
        if review_vectors is not None and review_vectors.shape != expected:
            raise InputError(
                f"the review vectors of {expected[0]} users must be {expected}, not "
                f"{review_vectors.shape}"
            )
        if contexts is not None and len(contexts) != len(histories):
            raise InputError(
                f"{len(histories)} histories need as many contexts, not {len(contexts)}"
            )
        parts = [np.zeros((0, len(self.item_ids)), np.float32)]
        for start in range(0, len(histories), _USERS_AT_A_TIME):
            part = slice(start, start + _USERS_AT_A_TIME)
            asked = None if query_scores is None else query_scores[part]
            written = None if review_vectors is None else review_vectors[part]
            given = None if contexts is None else contexts[part]
            parts.append(self._score(histories[part], asked, written, given, discounted))
        return np.concatenate(parts)

    def _score(
        self,
        histories: Sequence[np.ndarray],
        asked: np.ndarray | None,
        written: np.ndarray | None,
        contexts: Sequence[Context] | None,
        discounted: bool,
    ) -> np.ndarray:
        learned = self.recommender
        histories = [newest(rows, learned.max_history) for rows in histories]
        users = learned.weights.text * user_vectors(learned.user_tower, self.embeddings, histories)
        if written is not None:
            users = users + learned.weights.reviews * written
        scores = users @ self.embeddings.T
        scores += (
            recency_matrix(histories, learned.decay, len(self.item_ids)) @ self._matrix
        ).toarray()
        given = np.zeros((len(histories), 1), bool)
        if asked is not None:
            given = ~np.isnan(asked).any(axis=1, keepdims=True)  # [users, 1]
        if contexts is not None:
            alone = np.array([not len(rows) for rows in histories], bool) & ~given[:, 0]
            weights = self.context.user_weights(contexts, alone)
            scores += (weights @ self.context.lifts).toarray()
        prior = self.prior
        if discounted and self.discount.any():
            known = np.array([len(rows) > 0 for rows in histories], bool)[:, None]
            prior = prior - np.where(known, self.discount, np.float32(0))  # [users, N]
        if asked is None:
            return scores + prior
        return scores + np.where(given, learned.weights.query * np.nan_to_num(asked), prior)

    def rows(self, history: Sequence[str]) -> np.ndarray:
        """Rows of the known items among ids, in their order."""
        found = [self._row_of.get(item_id, -1) for item_id in history]
        return np.array([row for row in found if row >= 0], np.int64)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        k: int = 10,
        query_scores: np.ndarray | None = None,
        review_vectors: np.ndarray | None = None,
        contexts: Sequence[Context] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """The k best items for each user that are not in the history.

        Args:
            histories: item ids, oldest first; unknown ones are passed over, and an empty history
                gets the most popular items.
            k: items a user; fewer where the catalogue has no more.
            query_scores: see `__call__`.
            review_vectors: see `__call__`.
            contexts: see `__call__`.

        Returns:
            Item ids with their scores, best first; of equal scores the earlier row comes first.
            A user who has seen the whole catalogue is offered it again.
        """
        rows = [self.rows(history) for history in histories]
        scores = self(rows, query_scores, review_vectors, contexts)
        answers = []
        for left_out, row_scores in zip(self._left_out(rows), scores, strict=True):
            row_scores[left_out] = -np.inf
            best = np.argsort(-row_scores, kind="stable")[:k]
            best = best[np.isfinite(row_scores[best])]
            answers.append([(self.item_ids[row], float(row_scores[row])) for row in best])
        return answers

    def probabilities(
        self,
        histories: Sequence[Sequence[str]],
        item_ids: Sequence[Sequence[str]],
        *,
        query_scores: np.ndarray | None = None,
        review_vectors: np.ndarray | None = None,
        contexts: Sequence[Context] | None = None,
    ) -> list[np.ndarray]:
        """How likely items are the next that a user takes.

        The softmax of the scores over all items that were not seen: what the weights of the parts
        were fitted to. An item that was seen is set against those that were not.

        Args:
            histories: item ids of each user, oldest first.
            item_ids: ids of the items asked about, for each user.
            query_scores: see `__call__`; how a query counts is set and not fitted.
            review_vectors: see `__call__`.
            contexts: see `__call__`.

        Returns:
            For each user float32 `[items asked about]`; 0 for an unknown item.
        """
        rows = [self.rows(history) for history in histories]
        scores = self(rows, query_scores, review_vectors, contexts, discounted=False)
        answers = []
        for left_out, of_all, asked in zip(self._left_out(rows), scores, item_ids, strict=True):
            offered = np.delete(of_all, left_out)
            total = offered.max() + np.log(np.exp(offered - offered.max()).sum())
            at = np.array([self._row_of.get(item_id, -1) for item_id in asked], np.int64)
            odds = np.exp(of_all[at] - total)
            chance = np.where(np.isin(at, left_out), odds / (1 + odds), np.minimum(odds, 1.0))
            answers.append(np.where(at >= 0, chance, 0.0).astype(np.float32))
        return answers

    def _left_out(self, histories: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows that are not offered again: all that was seen, nothing if that is everything."""
        seen = [np.unique(rows) for rows in histories]
        nothing = np.zeros(0, np.int64)
        return [rows if len(rows) < len(self.item_ids) else nothing for rows in seen]


def lending(embeddings: np.ndarray, known: np.ndarray) -> sp.csr_matrix:
    """Who lends new items what histories told of others: the nearest known items by text.

    Args:
        embeddings: float32 `[items, d]`, unit vectors.
        known: bool `[items]`, whether histories told of an item.

    Returns:
        float32 `[items, items]`: the identity, and in the column of a new item the shares of its
        lenders, which sum to 1 and fall with the cosine.
    """
    items = len(known)
    identity = sp.eye(items, format="csr", dtype=np.float32)
    new, old = np.flatnonzero(~known), np.flatnonzero(known)
    if not len(new) or not len(old):
        return identity
    count = min(_LENDERS, len(old))
    rows, columns, shares = [], [], []
    for start in range(0, len(new), _USERS_AT_A_TIME):
        part = new[start : start + _USERS_AT_A_TIME]
        cosine = embeddings[part] @ embeddings[old].T  # [part, old]
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        share = np.maximum(np.take_along_axis(cosine, nearest, axis=1), 0.0) ** _SHARPNESS
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
        rows.append(old[nearest].ravel())
        columns.append(np.repeat(part, count))
        shares.append(share.ravel())
    entries = np.concatenate(shares), (np.concatenate(rows), np.concatenate(columns))
    return identity + sp.csr_matrix(entries, shape=(items, items), dtype=np.float32)


def popularity_prior(counts: np.ndarray) -> np.ndarray:
    """`log(1 + count)` of each item, float32; the mean of the others where nothing is counted.

    An item without a count is new: it has not been refused, it has not been seen.
    """
    prior = np.log1p(counts.astype(np.float32))
    if (counts > 0).any():
        prior[counts == 0] = prior[counts > 0].mean()
    return prior


def user_vectors(
    tower: UserTower, embeddings: np.ndarray, histories: Sequence[np.ndarray]
) -> np.ndarray:
    """User vectors of histories of rows, float32 `[users, d]`."""
    rows = padded_rows(histories)  # [users, h]
    known = rows >= 0
    vectors = tower({"history": embeddings[np.maximum(rows, 0)], "known": known})
    return keras.ops.convert_to_numpy(vectors)


def padded_rows(histories: Sequence[np.ndarray]) -> np.ndarray:
    """Histories as a matrix, int64 `[users, h]`, -1 after the end of each.

    h is at least 2: Keras warns of a softmax over one place.
    """
    width = max([2, *map(len, histories)])
    rows = np.full((len(histories), width), -1, np.int64)
    for user, history in enumerate(histories):
        rows[user, : len(history)] = history
    return rows


def newest(history: np.ndarray, count: int) -> np.ndarray:
    """The last known rows of a history, at most `count`."""
    history = np.asarray(history, np.int64)
    return history[history >= 0][-count:]


def recency_matrix(histories: Sequence[np.ndarray], decay: float, item_count: int) -> sp.csr_matrix:
    """Weights of past items: `decay ** age`, and 1 in all for each user.

    Args:
        histories: known rows, oldest first.
        decay: in (0, 1]; 1 is a mean.
        item_count: number of items.

    Returns:
        float32 `[users, items]`; an item that comes twice has the sum of its weights.
    """
    lengths = np.array([len(history) for history in histories], np.int64)
    user = np.repeat(np.arange(len(histories)), lengths)
    weights = [_recency(length, decay) for length in lengths.tolist()]
    data = np.concatenate([np.zeros(0, np.float32), *weights])
    item = np.concatenate([np.zeros(0, np.int64), *histories])
    shape = (len(histories), item_count)
    return sp.csr_matrix((data, (user, item)), shape=shape, dtype=np.float32)


def _recency(length: int, decay: float) -> np.ndarray:
    weights = decay ** np.arange(length)[::-1].astype(np.float32)
    return weights / weights.sum() if length else weights
