"""Search over all shards of a catalogue, as if it were one index; it does not need TensorFlow.

See `serving.exported_shard` for what shards answer and why a search has two rounds, and
docs/scale.md for how they are served.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import numpy as np

from serving.client import (
    FilteredHit,
    Hit,
    VersionStatus,
    as_list,
    check_k,
    filtered_signature,
    filtered_top,
    make_transport,
    top,
)
from serving.client_error import ServingError
from serving.client_filters import Filters, filter_inputs
from serving.client_grpc import GrpcTransport, Input
from serving.client_rest import RestTransport
from serving.shards import shard_name
from towers.errors import InputError

__all__ = ["Answers", "ShardedClient"]

Outputs = dict[str, np.ndarray]
Transport = GrpcTransport | RestTransport
_Result = TypeVar("_Result")
_Hits = TypeVar("_Hits")

_CALLERS = 16  # searches at a time before calls wait for a thread
_REST_SECONDS = 5.0  # for how long a server that failed is asked last
_ELSEWHERE = frozenset(  # what another server of the same shard may do better
    ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "NOT_FOUND", "INTERNAL", "UNKNOWN"]
)
_OTHER_EXPORT = frozenset(["INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"])
_SIGNED = ("export_id", "shard", "places")


class Answers(list[_Hits]):
    """What was found for each query; a list, and which shards have no part in it.

    Attributes:
      missing: Names of shards that did not answer; empty unless the client is `partial`.
    """

    def __init__(self, found: Iterable[_Hits], missing: Iterable[str] = ()) -> None:
        """Makes the answers from their parts."""
        super().__init__(found)
        self.missing = sorted(missing)


class MixedExportsError(ServingError):
    """Shards answered whose scores may not stand in one ranking."""

    def __init__(self, export_ids: Mapping[str, str]) -> None:
        """Makes the error from the export id of each shard."""
        told = ", ".join(f"{name} is of {export_id}" for name, export_id in export_ids.items())
        super().__init__("FAILED_PRECONDITION", f"the shards are of different exports: {told}")


@dataclass
class _Call:
    """One search on its way.

    Attributes:
      deadline: When it has to be done, on the monotonic clock.
      version: The version to ask for; the newest of each shard when None.
      missing: Numbers of shards that failed, where that is allowed, and how.
      export_ids: Export id of each shard that answered, by its name.
    """

    deadline: float
    version: int | None = None
    missing: dict[int, ServingError] = field(default_factory=dict)
    export_ids: dict[str, str] = field(default_factory=dict)


class _Server:
    """A server of one shard.

    Attributes:
      shard: The number of its shard.
      name: The shard's name.
      address: The server's address.
      transport: What calls it.
    """

    def __init__(self, shard: int, name: str, address: str, transport: Transport) -> None:
        self.shard, self.name, self.address, self.transport = shard, name, address, transport
        self._rests_until = float("-inf")
        self._error = ServingError("UNAVAILABLE", "not asked yet")

    @property
    def failed(self) -> ServingError | None:
        """What went wrong a moment ago, if anything did."""
        return self._error if time.monotonic() < self._rests_until else None

    def ask(self, method: Callable[[Transport, float], _Result], seconds: float) -> _Result:
        try:
            result = method(self.transport, seconds)
        except ServingError as error:
            named = ServingError(error.code, f"{self.name} at {self.address}: {error.message}")
            if error.code in _ELSEWHERE:
                self._error, self._rests_until = named, time.monotonic() + _REST_SECONDS
            raise named from error
        self._rests_until = float("-inf")
        return result


class ShardedClient(AbstractContextManager["ShardedClient"]):
    """Asks all shards of a catalogue at once and merges their answers exactly.

    The k best of all shards, in the order that one index over all items would give them, items of
    equal scores included. `recommend` and `score` are not to be had: see `serving.sharded_export`.

    One client may be shared by threads. It holds connections: close it, or use it in a `with`.

    Example:
      ```python
      shards = [["a:8500", "b:8500"], ["c:8500", "d:8500"]]  # two shards, two servers each
      with ShardedClient(shards, model="shop") as client:
          hits = client.search(["something to keep coffee hot"], k=5)[0]
      ```
    """

    def __init__(
        self,
        shards: Sequence[str | Sequence[str]],
        *,
        model: str,
        transport: str = "grpc",
        timeout: float = 10.0,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        partial: bool = False,
    ) -> None:
        """Makes a client; the first call connects.

        Args:
          shards: Of each shard, in order, the address of its server, or those of several, of
            which any is asked. One server may have several shards, or all.
          model: The name of the whole, `NAME` of `towers export --output saved_models/NAME`; the
            shards are served as `NAME-00000-of-00002` and so on.
          transport: "grpc" or "rest".
          timeout: How many seconds a call may take in all, at most a day's.
          token: See `RetrievalClient`.
          credentials: See `RetrievalClient`.
          partial: Whether to answer from the shards that there are where some fail. The answers
            then tell which are missing; words are weighed against the best match among the others.

        Raises:
          InputError: No shards, a shard without a server, or what `RetrievalClient` refuses.
        """
        if isinstance(shards, str) or not shards:
            raise InputError("name the servers of each shard: a list of HOST:PORT")
        servers = [[one] if isinstance(one, str) else list(one) for one in shards]
        self._names = [shard_name(model, number, len(servers)) for number in range(len(servers))]
        for name, addresses in zip(self._names, servers, strict=True):
            if not addresses:
                raise InputError(f"{name} has no server: name at least one HOST:PORT")
        self._servers = [
            [
                _Server(
                    number,
                    name,
                    address,
                    make_transport(address, name, transport, timeout, token, credentials),
                )
                for address in addresses
            ]
            for number, (name, addresses) in enumerate(zip(self._names, servers, strict=True))
        ]
        self._timeout, self._partial = timeout, partial
        self._plan: dict[str, dict[str, str]] | None = None
        self._pool = ThreadPoolExecutor(_CALLERS * len(servers), thread_name_prefix="shard")

    def search(self, texts: Sequence[str], k: int | None = None) -> Answers[list[Hit]]:
        """Finds the items that fit each query text; see `RetrievalClient.search`.

        Raises:
          ServingError: A shard cannot be reached or refuses, or the shards are not of one export.
        """
        queries = as_list(texts)
        check_k(k)

        def work(call: _Call) -> Answers[list[Hit]]:
            return self._named(top(self._search(call, "shard_search", queries, {}), k), call)

        return self._run(work) if queries else Answers([])

    def search_filtered(
        self,
        texts: Sequence[str],
        filters: Filters | None = None,
        exclude: Sequence[str] = (),
        k: int | None = None,
    ) -> Answers[list[FilteredHit]]:
        """Finds, of the items that are allowed, those that fit each query text.

        See `RetrievalClient.search_filtered`, and `search` for errors.
        """
        queries, without, name = as_list(texts), as_list(exclude), "shard_search_filtered"
        check_k(k)

        def work(call: _Call) -> Answers[list[FilteredHit]]:
            signature = filtered_signature(self._signatures(call), name)
            inputs = filter_inputs(signature, filters or {}, without, len(queries))
            return self._named(filtered_top(self._search(call, name, queries, inputs), k), call)

        return self._run(work) if queries else Answers([])

    def similar(self, item_ids: Sequence[str], k: int | None = None) -> Answers[list[Hit]]:
        """Finds the items that are like each given item; see `search`."""
        asked = as_list(item_ids)
        check_k(k)

        def work(call: _Call) -> Answers[list[Hit]]:
            found = self._ask_all(call, "shard_item", {"item_id": asked}, share=0.5)
            # Zeros where a shard does not have an item.
            embedding = np.sum([np.asarray(x["embedding"], np.float32) for x in found], axis=0)
            known = np.any([np.asarray(x["known"], np.int64) > 0 for x in found], axis=0)
            inputs: dict[str, Input] = {"item_id": asked, "embedding": embedding}
            hits = top(_merged(self._ask_all(call, "shard_similar", inputs)), k)
            return self._named([x if y else [] for x, y in zip(hits, known, strict=True)], call)

        return self._run(work) if asked else Answers([])

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the query tower's embeddings, float32 `[len(texts), dim]`; asks one shard."""
        queries = as_list(texts)
        if not queries:
            return np.zeros((0, 0), np.float32)
        return self._run(lambda call: self._encode(call, queries))

    def status(self) -> dict[str, list[VersionStatus]]:
        """Returns what one server of each shard says of its versions, by the shard's name.

        Raises:
          ServingError: A shard cannot be reached.
        """
        deadline = time.monotonic() + self._timeout
        futures = [
            self._pool.submit(self._statuses, servers, deadline) for servers in self._servers
        ]
        return {name: future.result() for name, future in zip(self._names, futures, strict=True)}

    def close(self) -> None:
        """Closes the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for server in itertools.chain.from_iterable(self._servers):
            server.transport.close()

    def __exit__(self, *raised: object) -> None:
        """Closes the connections."""
        self.close()

    def _run(self, work: Callable[[_Call], _Result]) -> _Result:
        """Does a search: of the newest versions, or else of one that all shards have.

        While a new version comes in, some shards have it before others.
        """
        deadline = time.monotonic() + self._timeout
        known = self._plan
        try:
            return work(_Call(deadline))
        except MixedExportsError:
            version = self._common_version(deadline)
            if version is None:
                raise
            return work(_Call(deadline, version))
        except ServingError as error:
            # Another kind of export may have come in, with other signatures.
            self._plan = None
            if known is None or error.code not in _OTHER_EXPORT:
                raise
            return work(_Call(deadline))

    def _search(
        self, call: _Call, signature: str, queries: list[str], more: Mapping[str, Input]
    ) -> Outputs:
        """The merged answer of both rounds."""
        takes = self._signatures(call)
        encoding = self._pool.submit(self._encode, call, queries)
        inputs: dict[str, Input] = {"query": queries, **more}
        if "shard_best" in takes:
            answers = self._ask_all(call, "shard_best", {"query": queries}, share=0.5)
            inputs["best"] = np.max([np.asarray(x["best"], np.float32) for x in answers], axis=0)
        inputs["embedding"] = encoding.result()
        return _merged(self._ask_all(call, signature, inputs))

    def _encode(self, call: _Call, queries: list[str]) -> np.ndarray:
        """Embeddings of queries, float32 `[N, d]`, made by any shard's server."""
        servers = list(itertools.chain.from_iterable(self._servers))
        answer = self._ask_one(call, servers, "shard_encode", {"query": queries}, share=0.5)
        return np.asarray(answer["embedding"], np.float32)

    def _signatures(self, call: _Call) -> dict[str, dict[str, str]]:
        """The inputs of each signature that the shards have."""
        if call.version is None and self._plan is not None:
            return self._plan
        servers = list(itertools.chain.from_iterable(self._servers))
        plan = self._first(
            servers,
            lambda transport, seconds: transport.signatures(timeout=seconds, version=call.version),
            call.deadline,
        )[1]
        if call.version is None:
            self._plan = plan
        return plan

    def _common_version(self, deadline: float) -> int | None:
        """The newest version that all shards that answer have in service; None without one."""
        futures = [
            self._pool.submit(self._statuses, servers, deadline) for servers in self._servers
        ]
        versions = []
        for future in futures:
            try:
                statuses = future.result()
            except ServingError:
                if not self._partial:
                    raise
            else:
                versions.append({x.version for x in statuses if x.state == "AVAILABLE"})
        return max(set.intersection(*versions), default=None) if versions else None

    def _statuses(self, servers: Sequence[_Server], deadline: float) -> list[VersionStatus]:
        _, entries = self._first(
            servers, lambda transport, seconds: transport.status(timeout=seconds), deadline
        )
        return [VersionStatus(*entry) for entry in entries]

    def _ask_all(
        self, call: _Call, signature: str, inputs: Mapping[str, Input], share: float = 1.0
    ) -> list[Outputs]:
        """Answers of all shards, but for those that are missing already.

        Args:
          call: The search that this is a part of.
          signature: The signature to run.
          inputs: Its inputs.
          share: The share of the time left that this may take.
        """
        futures: dict[int, Future[Outputs]] = {
            number: self._pool.submit(self._ask_one, call, servers, signature, inputs, share)
            for number, servers in enumerate(self._servers)
            if number not in call.missing
        }
        answers, errors = [], {}
        for number, future in futures.items():
            try:
                answers.append(future.result())
            except ServingError as error:
                errors[number] = error
        if errors and not (self._partial and all(x.code in _ELSEWHERE for x in errors.values())):
            raise _together(errors)
        call.missing |= errors
        if not answers:
            raise _together(call.missing)
        if len(set(call.export_ids.values())) > 1:
            raise MixedExportsError(call.export_ids)
        return answers

    def _ask_one(
        self,
        call: _Call,
        servers: Sequence[_Server],
        signature: str,
        inputs: Mapping[str, Input],
        share: float = 1.0,
    ) -> Outputs:
        """The answer of one of some servers; notes which export it is of."""
        now = time.monotonic()
        server, outputs = self._first(
            servers,
            lambda transport, seconds: transport.predict(
                signature, inputs, timeout=seconds, version=call.version
            ),
            now + share * (call.deadline - now),
        )
        (number,) = set(outputs["shard"].tolist())
        if number != server.shard:
            raise ServingError(
                "FAILED_PRECONDITION",
                f"{server.address} serves shard {number} under the name {server.name}",
            )
        (export_id,) = set(outputs["export_id"].tolist())
        if call.export_ids.setdefault(server.name, export_id) != export_id:
            # A new version came in between the rounds.
            raise MixedExportsError(
                {server.name: export_id, "before": call.export_ids[server.name]}
            )
        return outputs

    def _first(
        self,
        servers: Sequence[_Server],
        method: Callable[[Transport, float], _Result],
        deadline: float,
    ) -> tuple[_Server, _Result]:
        """What the first server says that can; those that failed a moment ago are asked last."""
        order = random.sample(servers, len(servers))
        order.sort(key=lambda server: server.failed is not None)  # keeps the rest as drawn
        error = ServingError("DEADLINE_EXCEEDED", f"{order[0].name}: no time was left to ask it")
        for left, server in zip(range(len(order), 0, -1), order, strict=True):
            if self._partial and (failed := server.failed):
                error = failed  # an answer without it is due now
                continue
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            try:
                return server, server.ask(method, seconds / min(left, 2))
            except ServingError as failure:
                error = failure
                if error.code not in _ELSEWHERE:
                    break
        raise error

    def _named(self, found: list[_Hits], call: _Call) -> Answers[_Hits]:
        return Answers(found, [self._names[number] for number in call.missing])


def _together(errors: Mapping[int, ServingError]) -> ServingError:
    """One error of several; one that another server would not have made first."""
    first = next((x for x in errors.values() if x.code not in _ELSEWHERE), None)
    first = first or next(iter(errors.values()))
    if isinstance(first, MixedExportsError):
        return first
    return ServingError(first.code, "; ".join(error.message for error in errors.values()))


def _merged(answers: Sequence[Outputs]) -> Outputs:
    """The best items of all shards, as wide as the answer of one of them.

    Of items with equal scores the one with the lower place in the catalogue comes first. Places of
    an answer that stay empty have a score below all others, and so come last.
    """
    scores = np.concatenate([np.asarray(x["scores"], np.float64) for x in answers], axis=1)
    places = np.concatenate([np.asarray(x["places"], np.int64) for x in answers], axis=1)
    width = max(x["scores"].shape[1] for x in answers)
    order = np.lexsort((places, -scores))[:, :width]  # [N, width]
    names = [name for name in answers[0] if name not in (*_SIGNED, "scores")]
    merged = {name: np.concatenate([x[name] for x in answers], axis=1) for name in names}
    merged["scores"] = scores
    return {name: np.take_along_axis(values, order, axis=1) for name, values in merged.items()}
