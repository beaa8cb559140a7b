"""Why this item: the parts of a query, an item text or a history that carried its score.

The score of two texts is the cosine of their vectors. Where a tower pools by mean or maximum, a
text's vector is the sum of one vector a token, so that the cosine is a sum over pairs of tokens and
splits exactly: nothing is estimated. What a token stands for in its text it has from its
neighbours, by attention: its share is that of the token as it is read there, and other than what
its removal would change. The latter is the other method, which works for every pooling, and for a
history with any scorer. The score of a recommendation is a sum over past items and parts
(`towers.Recommender`), and splits exactly as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from keras import ops

from towers.attribute_reader import AttributeReader
from towers.bert import sequence_output
from towers.context_text import Context
from towers.encoding import padded, token_sequences
from towers.errors import InputError
from towers.item_neighbours import word_neighbours
from towers.item_text import text_of
from towers.recommender import CatalogRecommender, newest, recency_matrix
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer
from towers.user_tower import history_attention

Method = Literal["split", "leave-one-out"]
ATTRIBUTES = "[attributes]"
"""The word that stands for an item's attributes where they are fused."""

_ROWS_AT_A_TIME = 32


@dataclass(frozen=True)
class Explanation:
    """Why a query and an item text have their score.

    Attributes:
        score: the cosine.
        method: ``split``: the shares of either side add up to the score; ``leave-one-out``: a share
            is what the score loses where the word cannot be seen.
        query_words: as the tokenizer reads them, pieces joined, ``[CLS]`` and ``[SEP]`` included.
        query_shares: float64 ``[Q]``.
        item_words: likewise.
        item_shares: float64 ``[I]``.
        pairs: float64 ``[Q, I]``, the share of each pair of words; None for ``leave-one-out``.
    """

    score: float
    method: Method
    query_words: list[str]
    query_shares: np.ndarray = field(repr=False)
    item_words: list[str]
    item_shares: np.ndarray = field(repr=False)
    pairs: np.ndarray | None = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""

        def shares(words: list[str], values: np.ndarray) -> list[dict[str, Any]]:
            return [
                {"word": word, "share": share}
                for word, share in zip(words, values.tolist(), strict=True)
            ]

        return {
            "cosine": self.score,
            "method": self.method,
            "query": shares(self.query_words, self.query_shares),
            "item": shares(self.item_words, self.item_shares),
        }


def explain(
    retriever: Retriever,
    query: str,
    item_texts: Sequence[str],
    *,
    method: Method | None = None,
) -> list[Explanation]:
    """Says which words of a query and of items carried their scores.

    Args:
        retriever: the towers.
        query: the query, without the prefix.
        item_texts: texts of the items, the template filled in.
        method: see `Explanation`; ``split`` if None, ``leave-one-out`` where the pooling is ``cls``
            and all of a vector is the first token's.

    Returns:
        An explanation for each item, of all that the towers read: texts are cut to the lengths of
        `TextSettings`. Where the towers fuse attributes, these are one more word of an item,
        `ATTRIBUTES`.

    Raises:
        InputError: the method does not exist, or cannot split what ``cls`` pools.
    """
    towers = (retriever.model.query_tower, retriever.model.item_tower)
    splits = all(tower.pooling.mode != "cls" for tower in towers)
    method = method or ("split" if splits else "leave-one-out")
    if method not in ("split", "leave-one-out"):
        raise InputError(f"method {method!r} is neither 'split' nor 'leave-one-out'")
    if method == "split" and not splits:
        raise InputError("towers that pool by 'cls' have no split over words: use 'leave-one-out'")
    text = retriever.text
    query_tower, item_tower = (_Words(tower, retriever.tokenizer, method) for tower in towers)
    asked = query_tower([text.query_prefix + query], text.query_max_length)[0]
    found = item_tower([text_of(item) for item in item_texts], text.item_max_length)
    if (fusion := retriever.model.fusion) is not None:
        features = AttributeReader(fusion.attributes).read(item_texts)
        moves = ops.convert_to_numpy(fusion.moves(fusion.read_weights(), features))
        found = [
            _with_attributes(one, move.astype(np.float64), method)
            for one, move in zip(found, moves, strict=True)
        ]
    return [_explanation(asked, one, method) for one in found]


@dataclass(frozen=True)
class _Parts:
    """A text by its words.

    Attributes:
        words: see `Explanation`.
        whole: float64 ``[d]``, the unit vector of the text.
        parts: float64 ``[words, d]``: with ``split`` what each word adds to it, otherwise what it
            loses without the word.
    """

    words: list[str]
    whole: np.ndarray
    parts: np.ndarray


def _explanation(query: _Parts, item: _Parts, method: Method) -> Explanation:
    return Explanation(
        score=float(query.whole @ item.whole),
        method=method,
        query_words=query.words,
        query_shares=query.parts @ item.whole,
        item_words=item.words,
        item_shares=item.parts @ query.whole,
        pairs=query.parts @ item.parts.T if method == "split" else None,
    )


def _with_attributes(item: _Parts, move: np.ndarray, method: Method) -> _Parts:
    """The parts of an item whose attributes move its text's vector: one part more."""

    def fused(vectors: np.ndarray) -> np.ndarray:
        moved = vectors + move
        return moved / np.linalg.norm(moved, axis=-1, keepdims=True)

    whole = fused(item.whole)
    if method == "split":
        parts = np.vstack([item.parts, move]) / np.linalg.norm(item.whole + move)
    else:
        parts = np.vstack([whole - fused(item.whole - item.parts), whole - item.whole])
    return _Parts([*item.words, ATTRIBUTES], whole, parts)


class _Words:
    """A tower that gives a text's vector by its words."""

    def __init__(self, tower: TextEncoder, tokenizer: Tokenizer, method: Method) -> None:
        self.tower = tower
        self.tokenizer, self.pieces = tokenizer, tokenizer.vocabulary
        self.weights = tower.read_weights("float32")
        self.parts_of = self._split if method == "split" else self._left_out

    def __call__(self, texts: Sequence[str], max_length: int) -> list[_Parts]:
        sequences = token_sequences(self.tokenizer, texts, max_length)
        return [self._text(ids) for ids in sequences]

    def _text(self, ids: np.ndarray) -> _Parts:
        pieces = [self.pieces[i] for i in ids]
        starts = np.array([not piece.startswith("##") for piece in pieces])
        starts[0] = True
        word_of = np.cumsum(starts) - 1  # [T]
        words = [""] * (word_of[-1] + 1)
        for piece, word in zip(pieces, word_of, strict=True):
            words[word] += piece.removeprefix("##") if words[word] else piece
        whole, parts = self.parts_of(ids, word_of)
        return _Parts(words, whole, parts)

    def _split(self, ids: np.ndarray, word_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = padded([ids], len(ids), self.tokenizer.pad_id, step=1)
        tokens = sequence_output(
            self.weights.bert,
            inputs["token_ids"],
            inputs["padding_mask"],
            num_heads=self.tower.backbone.num_heads,
            dropout=lambda x: x,
        )[0]
        parts = np.asarray(ops.convert_to_numpy(tokens), np.float64)  # [T, hidden]
        if self.tower.pooling.mode == "mean":
            parts = parts / len(parts)
        else:  # the maximum of each dimension is of one token
            parts = np.where(np.arange(len(parts))[:, None] == parts.argmax(axis=0), parts, 0.0)
        for kernel in self.weights.projections:
            parts = parts @ np.asarray(ops.convert_to_numpy(kernel), np.float64)
        total = parts.sum(axis=0)
        norm = max(float(np.linalg.norm(total)), 1e-12)
        by_word = np.zeros((word_of[-1] + 1, parts.shape[1]))
        np.add.at(by_word, word_of, parts / norm)
        return total / norm, by_word

    def _left_out(self, ids: np.ndarray, word_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Hidden by the mask: all other tokens stay in their places.
        hidden = [np.zeros(len(ids), bool), *(word_of == word for word in range(word_of[-1] + 1))]
        masks = 1 - np.stack(hidden).astype(np.int32)  # [1 + words, T]
        vectors = []
        for start in range(0, len(masks), _ROWS_AT_A_TIME):
            mask = masks[start : start + _ROWS_AT_A_TIME]
            inputs = {"token_ids": np.tile(ids, (len(mask), 1)), "padding_mask": mask}
            vectors.append(ops.convert_to_numpy(self.tower.embed(self.weights, inputs)))
        found = np.concatenate(vectors).astype(np.float64)
        return found[0], found[0] - found[1:]


def history_shares(
    scorer: Callable[[Sequence[np.ndarray]], np.ndarray], history: np.ndarray, item: int
) -> np.ndarray:
    """Says what each past item did for the score of an item: what it loses without that one.

    Works for any scorer, whether the past items count one by one or by attention to each other.

    Args:
        scorer: from histories, rows of the catalogue int ``[events]``, oldest first, to scores
            float32 ``[users, items]``.
        history: int ``[events]``.
        item: row of the item.

    Returns:
        float64 ``[events]``.
    """
    shorter = [np.delete(history, place) for place in range(len(history))]
    scores = scorer([history, *shorter])[:, item].astype(np.float64)  # [1 + events]
    return scores[0] - scores[1:]


def mean_shares(weights: np.ndarray, past: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Splits the cosine of an item and the weighted mean of past items, exactly.

    Args:
        weights: floating ``[events]``, of the past items in the mean.
        past: floating ``[events, d]``, their vectors.
        item: floating ``[d]``, of length one.

    Returns:
        float64 ``[events]``; they add up to the cosine.
    """
    parts = np.asarray(weights, np.float64)[:, None] * past  # [events, d]
    return parts @ item / max(float(np.linalg.norm(parts.sum(axis=0))), 1e-12)


HISTORY_PARTS = ("text", "co_occurrence", "words")
"""The parts of a recommender's score that past items carry."""


@dataclass(frozen=True)
class RecommendationExplanation:
    """Why an item has its score for a user; the shares and the other parts add up to it.

    Attributes:
        item_id: the item.
        history: ids of the past items that were looked at, oldest first.
        shares: float64 ``[events, 3]``: what each of them added, by `HISTORY_PARTS`.
        popularity: what the item's popularity added; 0 where a query takes its place.
        query: what the query added; None without one.
        reviews: what the user's reviews added; None without any.
        context: what each known value of a context added, by `column=value`; None without any.
    """

    item_id: str
    history: list[str]
    shares: np.ndarray = field(repr=False)
    popularity: float
    query: float | None = None
    reviews: float | None = None
    context: dict[str, float] | None = None

    @property
    def score(self) -> float:
        """The sum of all parts, which is the recommender's score."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """What each part added: `HISTORY_PARTS`, and of the others those that are given."""
        of_history = dict(zip(HISTORY_PARTS, self.shares.sum(axis=0).tolist(), strict=True))
        context = None if self.context is None else sum(self.context.values())
        others = {
            "popularity": self.popularity,
            "query": self.query,
            "reviews": self.reviews,
            "context": context,
        }
        return of_history | {name: value for name, value in others.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "score": self.score,
            "parts": self.parts(),
            "history": [
                {"item_id": item_id, "share": sum(row)} | dict(zip(HISTORY_PARTS, row, strict=True))
                for item_id, row in zip(self.history, self.shares.tolist(), strict=True)
            ],
        } | ({} if self.context is None else {"context": self.context})


def explain_recommendations(
    shop: CatalogRecommender,
    item_texts: Sequence[str],
    history: Sequence[str],
    item_ids: Sequence[str],
    *,
    query_scores: np.ndarray | None = None,
    review_vector: np.ndarray | None = None,
    context: Context | None = None,
) -> list[RecommendationExplanation]:
    """Says which past items carried the scores of items, and by which of their parts.

    Nothing is estimated: the text part is linear in the past items once the attention that weighs
    them is given, the neighbours are a sum over them. What an item's removal would change is
    another question, since all others then weigh more: `history_shares`.

    Args:
        shop: the recommender over a catalogue of `N` items.
        item_texts: texts of the catalogue, `N`, the template filled in.
        history: item ids, oldest first; unknown ones are passed over.
        item_ids: items to explain.
        query_scores: float32 ``[N]``, what `search` would score.
        review_vector: float32 ``[d]``, of `towers.Recommender.review_vectors`.
        context: column to value; what was not learned is passed over.

    Returns:
        An explanation for each item.

    Raises:
        InputError: the catalogue lacks an item, or the texts are not as many as its items.
    """
    learned = shop.recommender
    weights = learned.weights
    row_of = {item_id: row for row, item_id in enumerate(shop.item_ids)}
    if unknown := [item_id for item_id in item_ids if item_id not in row_of]:
        raise InputError(f"the catalogue lacks the item {unknown[0]!r}")
    if len(item_texts) != len(shop.item_ids):
        raise InputError(f"{len(shop.item_ids)} items need as many texts, not {len(item_texts)}")
    items = np.array([row_of[item_id] for item_id in item_ids], np.int64)
    past = newest(shop.rows(history), learned.max_history)
    wanted = shop.embeddings[items].astype(np.float64)  # [items, d]

    shares = np.zeros((len(past), len(items), len(HISTORY_PARTS)))
    if len(past):
        shares[:, :, 0] = weights.text * _text_shares(shop, past) @ wanted.T
        recency = recency_matrix([np.arange(len(past))], learned.decay, len(past)).toarray().T
        near = shop.neighbours.matrix()[past][:, items].toarray()
        words = np.zeros_like(near)
        if weights.words:
            words = word_neighbours(item_texts).matrix()[past][:, items].toarray()
            words = np.minimum(weights.words * words, near)
        shares[:, :, 1] = recency * (near - words)
        shares[:, :, 2] = recency * words
    asked = None if query_scores is None else weights.query * query_scores[items]
    popularity = shop.prior[items] if asked is None else np.zeros(len(items))
    written = None if review_vector is None else weights.reviews * (wanted @ review_vector)
    added = _context_shares(shop, context or {}, items, alone=not len(past) and asked is None)
    return [
        RecommendationExplanation(
            item_id=item_id,
            history=[shop.item_ids[row] for row in past.tolist()],
            shares=shares[:, place],
            popularity=float(popularity[place]),
            query=None if asked is None else float(asked[place]),
            reviews=None if written is None else float(written[place]),
            context=None if context is None else {text: of[place] for text, of in added.items()},
        )
        for place, item_id in enumerate(item_ids)
    ]


def _context_shares(
    shop: CatalogRecommender, context: Context, items: np.ndarray, *, alone: bool
) -> dict[str, list[float]]:
    """What each known value adds to items, by `column=value`."""
    learned = shop.context
    return {
        text: (learned.weights[row, int(alone)] * learned.lifts[row].toarray()[0, items]).tolist()
        for text, row in learned.rows(context).items()
    }


def _text_shares(shop: CatalogRecommender, past: np.ndarray) -> np.ndarray:
    """What past items add to the user's vector, float64 ``[events, d]``."""
    weights = shop.recommender.user_tower.weights_by_name()
    vectors = shop.embeddings[past]
    # Two places at least: Keras warns of a softmax over one.
    history = np.concatenate([vectors, np.zeros_like(vectors[:1])])[None]
    known = np.arange(len(past) + 1)[None] < len(past)
    attention = ops.convert_to_numpy(history_attention(weights, history, known))[0, :-1]
    kernel = np.asarray(ops.convert_to_numpy(weights["kernel"]), np.float64)
    moved = attention[:, None].astype(np.float64) * (vectors + vectors @ kernel)
    return moved / max(float(np.linalg.norm(moved.sum(axis=0))), 1e-12)
