"""The folder of a training run: everything needed to understand, use and repeat it.

config.json     resolved configuration
run.json        data files with their SHA-256, package versions, when it started
metrics.json    what was measured; written last: a run that has it is finished
shots.csv       the positive pairs that were drawn, in an update with all that came before; missing
                in a run without interactions
held_out.csv    judged pairs of queries that the towers were not trained on, for updates to be
                compared on; where some were held out
model/          towers, vocabulary, text settings (`towers.Retriever.load`)
recommender/    what was learned from histories, where there were some
item_vectors/   vectors that were encoded with these towers, to be found again
checkpoints/    for taking up an interrupted run; removed when it is finished
tensorboard/    event files
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv

from towers.errors import InputError
from towers.packages import package_versions
from towers.retriever import Retriever
from training.atomic_file import atomic_file, write_json
from training.catalog import Catalog
from training.config import TrainConfig
from training.histories import Histories
from training.interactions import Interactions

_FOLDERS = ("model", "recommender", "item_vectors", "checkpoints", "tensorboard")
_SHOTS, _HELD_OUT = "shots.csv", "held_out.csv"


class DataFile(Protocol):
    """A file that was read, such as a `training.catalog.Catalog`."""

    @property
    def path(self) -> str: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def open(
        cls,
        path: Path,
        config: TrainConfig,
        catalog: Catalog,
        interactions: Interactions | None,
        histories: Histories | None = None,
        *,
        further: Mapping[str, DataFile | None] | None = None,
        parent: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Starts a run in a folder, or takes up an interrupted run of the same inputs.

        Args:
            path: the folder.
            config: all settings.
            catalog: the items.
            interactions: judged pairs; None for a run without any.
            histories: what users took; None for a run that does not learn from it.
            further: other files that decide the run, by what they are to it.
            parent: the run that this one goes on from: ``path``, ``id`` and ``fingerprint``.

        Raises:
            InputError: the folder holds a finished run, a run of other inputs, or other things.
        """
        run = cls(path)
        files: dict[str, DataFile | None] = {
            "catalog": catalog,
            "interactions": interactions,
            "histories": histories,
            **(further or {}),
        }
        data = {
            name: {"path": file.path, "sha256": file.sha256}
            for name, file in files.items()
            if file is not None
        }
        settings = config.model_dump(mode="json")
        identity = {name: file["sha256"] for name, file in data.items()}
        if parent is not None:
            identity |= {"parent": parent["id"], "parent's towers": parent["fingerprint"]}
        run_id = _run_id(settings, identity)
        if run.is_finished:
            raise InputError(f"{path} holds a finished run: name another --output, or remove it")
        if (path / "run.json").is_file():
            if run.run_id != run_id:
                raise InputError(
                    f"{path} holds an unfinished run of other data or settings: "
                    "name another --output, or remove it"
                )
        else:
            # Hidden files do no harm; a kill may have left one of `atomic_file`.
            if path.exists() and (not path.is_dir() or any(path.glob("[!.]*"))):
                raise InputError(f"{path} exists and is no training run: name another --output")
            write_json(
                path / "run.json",
                {
                    "id": run_id,
                    "data": data,
                    **({} if parent is None else {"parent": dict(parent)}),
                    "packages": package_versions(),
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )
        write_json(path / "config.json", settings)
        return run

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A finished run.

        Raises:
            InputError: the folder holds none.
        """
        run = cls(path)
        if not path.is_dir():
            raise InputError(f"{path} is no folder: name the --output of `towers train`")
        if not run.is_finished:
            raise InputError(f"{path} holds no finished training run (no metrics.json)")
        return run

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "metrics.json").is_file()

    @property
    def run_id(self) -> str:
        """Hash of the run's inputs."""
        return str(json.loads((self.path / "run.json").read_text("utf-8"))["id"])

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        return TrainConfig.read(self.path / "config.json")

    @property
    def lexical_weight(self) -> float:
        """The weight of the lexical score that the run was given or chose.

        0 for a run that was made before there was one.

        Raises:
            InputError: ``metrics.json`` is damaged.
        """
        path = self.path / "metrics.json"
        try:
            metrics = json.loads(path.read_text("utf-8"))
            return float(metrics["lexical"]["weight"]) if "lexical" in metrics else 0.0
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is damaged: it should hold the lexical weight as "
                '{"lexical": {"weight": 0.5}}; give one with --lexical, or train again'
            ) from error

    @property
    def is_fitted(self) -> bool:
        """Whether its towers were trained on pairs."""
        metrics = json.loads((self.path / "metrics.json").read_text("utf-8"))
        return metrics.get("fit") is not None

    def load_retriever(self) -> Retriever:
        """The adapted towers."""
        return Retriever.load(self.path / "model")

    def shots(self, catalog: Catalog) -> Interactions | None:
        """The positive pairs that the run was trained on, as far as a catalogue has their items.

        Raises:
            InputError: the file is damaged, or the catalogue has none of the items.
        """
        return self._pairs(_SHOTS, catalog)

    def held_out(self, catalog: Catalog) -> Interactions | None:
        """Judged pairs of queries that neither it nor an update is trained on; likewise."""
        return self._pairs(_HELD_OUT, catalog)

    def _pairs(self, name: str, catalog: Catalog) -> Interactions | None:
        path = self.path / name
        return Interactions.read(path, catalog) if path.is_file() else None

    def finish(
        self,
        retriever: Retriever,
        shots: Interactions | None,
        metrics: dict[str, Any],
        *,
        held_out: Interactions | None = None,
    ) -> None:
        """Writes the result; the run is finished when this returns.

        Args:
            retriever: the towers.
            shots: the positive pairs that the run knows.
            metrics: what was measured.
            held_out: judged pairs of queries that the towers were not trained on.
        """
        retriever.save(self.path / "model")
        for name, pairs in ((_SHOTS, shots), (_HELD_OUT, held_out)):
            if pairs is not None:
                _write_pairs(self.path / name, pairs)
        write_json(self.path / "metrics.json", metrics)
        # Three times the model's size, and a finished run is not taken up again.
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def discard(self) -> None:
        """Removes an unfinished run, so that another can be made in its place.

        For a run that can never be finished: taken up again it would fail again, and in its folder
        a run of better settings would be refused. What is not the run's own stays.

        Raises:
            ValueError: the run is finished.
        """
        if self.is_finished:
            raise ValueError(f"{self.path} holds a finished run")
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        # `run.json` last: a kill in between leaves a run that can be taken up.
        for name in (_SHOTS, _HELD_OUT, "config.json", "run.json"):
            (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()


def _write_pairs(path: Path, pairs: Interactions) -> None:
    """Writes all that training needs of pairs, and nothing of who or when."""
    table = pa.table(
        {
            "query": [pairs.queries[row] for row in pairs.query_row.tolist()],
            "item_id": pairs.catalog.item_ids[pairs.item_row].tolist(),
            "grade": pa.array(pairs.grade),
            "weight": pa.array(pairs.weight),
        }
    )
    with atomic_file(path) as partial:
        pyarrow.csv.write_csv(table, partial)


def _run_id(settings: dict[str, Any], data: dict[str, str]) -> str:
    """What equal runs share: settings and contents, not file names."""
    identity = json.dumps([settings, data], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
