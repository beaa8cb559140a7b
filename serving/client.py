"""A client for a served retrieval model; it does not need TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

import grpc
import numpy as np

from serving.client_error import ServingError
from serving.client_filters import Filters, filter_inputs
from serving.client_grpc import GrpcTransport
from serving.client_rest import RestTransport
from towers.context_text import context_texts
from towers.errors import InputError

__all__ = ["FilteredHit", "Hit", "RetrievalClient", "ServingError", "VersionStatus"]

Inputs = list[str] | list[list[str]] | np.ndarray

_TRANSPORTS = ("grpc", "rest")
# Why a model cannot take what is said of users, by the end of the signature's name.
_LACKS = {
    "": "the model was exported from a run without histories: it recommends and scores nothing",
    "_reviews": "the model does not take reviews: it was exported from a run without histories, or "
    "before there were reviews",
    "_context": "the model does not take contexts: it was exported from a run without --users and "
    "--context",
}
_MAX_TIMEOUT = 86_400  # gRPC gives up at once where a deadline is too far away for its clock


class Hit(NamedTuple):
    """An item that was found.

    Attributes:
      item_id: The item's id in the catalogue.
      score: Its score; the higher, the better.
    """

    item_id: str
    score: float


class FilteredHit(NamedTuple):
    """An item that was found among those that were allowed.

    Attributes:
      item_id: See `Hit`.
      score: See `Hit`.
      columns: Column to its value; an empty text or 0 where the item has none.
    """

    item_id: str
    score: float
    columns: dict[str, str | float]


class Recommended(NamedTuple):
    """What may come next for one user.

    Attributes:
      hits: The items, best first.
      unknown: How many items of the history the model does not know.
    """

    hits: list[Hit]
    unknown: int


class VersionStatus(NamedTuple):
    """What the server says about one version of the model.

    Attributes:
      version: The version's number.
      state: START, LOADING, AVAILABLE, UNLOADING or END.
      error: Why it could not be served; empty where nothing is wrong.
    """

    version: int
    state: str
    error: str


class RetrievalClient(AbstractContextManager["RetrievalClient"]):
    """Asks a server, ours or TensorFlow Serving, about a model exported by this package.

    One client may be shared by threads. It holds a connection: close it, or use it in a `with`.

    Example:
      ```python
      with RetrievalClient("localhost:8500", model="shop") as client:
          for hit in client.search(["something to keep coffee hot"], k=5)[0]:
              print(hit.item_id, hit.score)
      ```
    """

    def __init__(
        self,
        address: str = "localhost:8500",
        *,
        model: str,
        transport: str = "grpc",
        timeout: float = 10.0,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client; the first call connects.

        Args:
          address: `HOST:PORT`; for REST also a URL, `http://HOST:PORT`.
          model: The name the model is served under.
          transport: "grpc" or "rest".
          timeout: How many seconds a call may take, at most a day's.
          token: A bearer token, where the server asks for one.
          credentials: For gRPC over TLS, `grpc.ssl_channel_credentials(...)`, with a client's key
            and certificate where the server wants them; for REST over TLS use an https URL.

        Raises:
          InputError: There is no such transport, the address is not one for it, the timeout is out
            of its range, the token is no header's value, or credentials are given for REST.
        """
        self._transport = make_transport(address, model, transport, timeout, token, credentials)

    def search(self, texts: Sequence[str], k: int | None = None) -> list[list[Hit]]:
        """Finds the items that fit each query text.

        Args:
          texts: The queries.
          k: How many hits to return at most; as many as the model was exported with when None,
            which is also the most there can be.

        Returns:
          The hits of each query, best first.

        Raises:
          ServingError: The server cannot be reached or refuses.
        """
        return self._hits("search", "query", texts, k)

    def search_filtered(
        self,
        texts: Sequence[str],
        filters: Filters | None = None,
        exclude: Sequence[str] = (),
        k: int | None = None,
    ) -> list[list[FilteredHit]]:
        """Finds, of the items that are allowed, those that fit each query text.

        Args:
          texts: The queries.
          filters: Column to the texts that are allowed, or to a least and a most number (None for
            no limit): `{"category": ["Kitchen"], "price": (None, 25)}`. A column that is not named
            allows everything.
          exclude: Ids of items that are not wanted.
          k: See `search`.

        Returns:
          The hits of each query, best first.

        Raises:
          InputError: There is no such column, or its values are of the other kind.
          ServingError: The server cannot be reached or refuses, or the model was exported without
            columns.
        """
        queries = as_list(texts)
        check_k(k)
        signature = filtered_signature(self._transport.signatures(), "search_filtered")
        inputs = filter_inputs(signature, filters or {}, as_list(exclude), len(queries))
        outputs = self._transport.predict("search_filtered", {"query": queries} | inputs)
        return filtered_top(outputs, k)

    def similar(self, item_ids: Sequence[str], k: int | None = None) -> list[list[Hit]]:
        """Finds the items that are like each given item; see `search`."""
        return self._hits("similar", "item_id", item_ids, k)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        queries: Sequence[str] | None = None,
        k: int | None = None,
        *,
        reviews: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        contexts: Sequence[Mapping[str, str | float | None]] | None = None,
    ) -> list[Recommended]:
        """Finds what may come next for each user.

        Args:
          histories: The ids of the items that each user took, oldest first. Unknown ones are passed
            over; an empty history falls back to the query, and then to what is popular.
          queries: What each user asks for now, empty for nothing; nothing at all when None.
          k: See `search`.
          reviews: What each user wrote about items; what is like the liked comes up, and what is
            like the disliked goes down. Nothing at all when None.
          ratings: For each review its rating, from 1 to 5; None for a review without one. Then, and
            where no ratings are given, the text tells how pleased the user was.
          contexts: What else is known of each user or of the moment, column to value: what people
            take who have it comes up. Columns and values that the run has not learned are passed
            over. Nothing at all when None.

        Returns:
          The hits of each user, best first, none of them in the history.

        Raises:
          ServingError: The server cannot be reached or refuses, or the model was exported without
            what it takes to recommend.
        """
        check_k(k)
        inputs = _users(histories, queries, reviews, ratings, contexts)
        outputs = self._of_users("recommend", inputs)
        return [
            Recommended(hits, int(unknown))
            for hits, unknown in zip(top(outputs, k), outputs["unknown"].tolist(), strict=True)
        ]

    def score(
        self,
        histories: Sequence[Sequence[str]],
        item_ids: Sequence[Sequence[str]],
        queries: Sequence[str] | None = None,
        *,
        reviews: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        contexts: Sequence[Mapping[str, str | float | None]] | None = None,
    ) -> list[list[float]]:
        """Returns how likely each item is the next that the user takes.

        Args:
          histories: See `recommend`.
          item_ids: The items asked about, for each user.
          queries: See `recommend`.
          reviews: See `recommend`.
          ratings: See `recommend`.
          contexts: See `recommend`.

        Raises:
          ServingError: See `recommend`.
        """
        inputs = _users(histories, queries, reviews, ratings, contexts) | {
            "item_ids": _padded(item_ids)
        }
        outputs = self._of_users("score", inputs)
        rows = outputs["probability"].tolist()
        return [row[: len(asked)] for row, asked in zip(rows, item_ids, strict=True)]

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the query tower's embeddings, float32 `[len(texts), dim]`.

        Raises:
          ServingError: The server cannot be reached or refuses.
        """
        outputs = self._transport.predict("encode_query", {"query": as_list(texts)})
        (embedding,) = outputs.values()
        rows = embedding.astype(np.float32, copy=False)
        # JSON has no shape: an empty list does not tell how wide its rows would have been.
        return rows if rows.ndim == 2 else rows.reshape(len(texts), 0)

    def status(self) -> list[VersionStatus]:
        """Returns the state of each version the server has seen, the newest first.

        Raises:
          ServingError: The server cannot be reached, or knows no version of the model.
        """
        return [VersionStatus(*entry) for entry in self._transport.status()]

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def __exit__(self, *raised: object) -> None:
        """Closes the connection."""
        self.close()

    def _of_users(self, name: str, inputs: dict[str, Inputs]) -> dict[str, np.ndarray]:
        """Runs the signature that takes what is said of the users, or says why there is none."""
        takes = _takes(inputs)
        signature = f"{name}{takes}"
        try:
            return self._transport.predict(signature, inputs)
        except ServingError as error:
            known: Mapping[str, object] = {signature: None}
            with suppress(ServingError):  # then the first error is the one to tell
                known = self._transport.signatures()
            if signature in known:
                raise
            raise ServingError("FAILED_PRECONDITION", _LACKS[takes]) from error

    def _hits(
        self, signature: str, name: str, values: Sequence[str], k: int | None
    ) -> list[list[Hit]]:
        check_k(k)
        return top(self._transport.predict(signature, {name: as_list(values)}), k)


def make_transport(
    address: str,
    model: str,
    transport: str,
    timeout: float,
    token: str | None,
    credentials: grpc.ChannelCredentials | None,
) -> GrpcTransport | RestTransport:
    """A transport to one model of one server; for arguments and errors see `RetrievalClient`."""
    if transport not in _TRANSPORTS:
        raise InputError(f"transport is {transport!r}; it has to be 'grpc' or 'rest'.")
    if not 0 < timeout <= _MAX_TIMEOUT:
        raise InputError(
            f"the timeout is {timeout} s; it has to be above 0 and at most {_MAX_TIMEOUT:,} s."
        )
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise InputError("the token is not one line of ASCII characters.")
    if transport == "grpc":
        return GrpcTransport(address, model, timeout, token, credentials)
    if credentials is not None:
        raise InputError("credentials are for gRPC; for REST over TLS give an https URL.")
    return RestTransport(address, model, timeout, token)


def check_k(k: int | None) -> None:
    """Raises InputError unless `k` can be a number of hits."""
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it has to be at least 1.")


def filtered_signature(signatures: dict[str, dict[str, str]], name: str) -> dict[str, str]:
    """The inputs of a signature that filters.

    Raises:
      ServingError: The model has none.
    """
    if name not in signatures:
        raise ServingError(
            "FAILED_PRECONDITION", "the model was exported without columns to filter by"
        )
    return signatures[name]


def filtered_top(outputs: dict[str, np.ndarray], k: int | None) -> list[list[FilteredHit]]:
    """The hits in an answer of `search_filtered`, k at most; every other output is a column."""
    columns = {
        name: rows.tolist() for name, rows in outputs.items() if name not in ("item_ids", "scores")
    }
    return [
        [
            FilteredHit(*hit, {name: of_column[row][place] for name, of_column in columns.items()})
            for place, hit in enumerate(hits)
        ]
        for row, hits in enumerate(top(outputs, k))
    ]


def top(outputs: dict[str, np.ndarray], k: int | None) -> list[list[Hit]]:
    """The hits in an answer of `search`, k at most for each query."""
    return [
        # Rows have a fixed width; where there were too few candidates, the ids are empty.
        [Hit(item_id, score) for item_id, score in zip(ids, scores, strict=True) if item_id][:k]
        for ids, scores in zip(
            outputs["item_ids"].tolist(), outputs["scores"].tolist(), strict=True
        )
    ]


def _users(
    histories: Sequence[Sequence[str]],
    queries: Sequence[str] | None,
    reviews: Sequence[Sequence[str]] | None,
    ratings: Sequence[Sequence[float | None]] | None,
    contexts: Sequence[Mapping[str, str | float | None]] | None,
) -> dict[str, Inputs]:
    """The inputs that say who asks, and what."""
    asked = [""] * len(histories) if queries is None else as_list(queries)
    if len(asked) != len(histories):
        raise InputError(f"{len(histories)} histories need as many queries, not {len(asked)}.")
    users: dict[str, Inputs] = {"history": _padded(histories), "query": asked}
    if reviews is None and ratings is not None:
        raise InputError("ratings need the reviews that they belong to.")
    if contexts is not None:
        if len(contexts) != len(histories):
            raise InputError(
                f"{len(histories)} histories need the contexts of as many users, not "
                f"{len(contexts)}."
            )
        users["context"] = _padded([context_texts(context) for context in contexts])
        reviews = reviews or [[]] * len(histories)
    if reviews is None:
        return users
    if len(reviews) != len(histories):
        raise InputError(
            f"{len(histories)} histories need the reviews of as many users, not {len(reviews)}."
        )
    written = _padded(reviews)
    rated = np.zeros((len(written), len(written[0]) if written else 1), np.float32)  # 0: no rating
    if ratings is not None:
        counts, expected = [len(row) for row in ratings], [len(row) for row in reviews]
        if counts != expected:
            raise InputError(f"reviews need as many ratings, {expected} a user, not {counts}.")
        for user, row in enumerate(ratings):
            for place, rating in enumerate(row):
                if rating is not None:
                    if not 1 <= rating <= 5:
                        raise InputError(f"a rating is {rating}; it has to be from 1 to 5.")
                    rated[user, place] = rating
    return users | {"reviews": written, "ratings": rated}


def _takes(inputs: dict[str, Inputs]) -> str:
    """The end of the name of the signature that takes what is said of the users."""
    if "context" in inputs:
        return "_context"
    return "_reviews" if "reviews" in inputs else ""


def _padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lists of one width, at least 1, the shorter ones filled up with empty strings."""
    lists = [as_list(row) for row in rows]
    width = max([1, *map(len, lists)])
    return [row + [""] * (width - len(row)) for row in lists]


def as_list(values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise TypeError(f"expected a list of strings, got one string; pass [{values!r}]")
    values = list(values)
    for place, value in enumerate(values):
        if not isinstance(value, str | bytes):
            raise TypeError(f"expected strings, got {value!r} at place {place}")
    return values
