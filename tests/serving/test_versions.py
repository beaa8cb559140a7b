"""Versions appear whole or not at all: names, races, kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serving import versions
from towers.errors import InputError

_REPOSITORY = Path(__file__).parents[2]


def _publish(base: Path, text: str = "graph") -> int:
    with versions.new_version(base) as draft:
        (draft.path / "variables").mkdir()
        (draft.path / "variables" / "data").write_text(text)
        (draft.path / "saved_model.pb").write_text(text)
    assert draft.version is not None
    return draft.version


def test_versions_count_up_from_one(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "shop"
    assert [_publish(base, text) for text in "abc"] == [1, 2, 3]
    assert list(versions.version_folders(base)) == [1, 2, 3]
    assert (base / "2" / "variables" / "data").read_text() == "b"
    assert sorted(os.listdir(base)) == ["1", "2", "3"]


def test_the_draft_is_invisible_until_the_end(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    with versions.new_version(base) as draft:
        (draft.path / "saved_model.pb").touch()
        assert draft.version is None
        assert versions.version_folders(base) == {}
        assert not any(name.isdigit() for name in os.listdir(base))
    assert draft.path == base / "1"


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    with pytest.raises(FileExistsError), versions.new_version(base) as draft:
        draft.path.mkdir()
    assert os.listdir(base) == []


def test_other_names_are_neither_listed_nor_overwritten(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    for name in ("latest", "1.5", "-2", "٣", " 3", "+3", str(2**63)):
        (base / name).mkdir(parents=True)
        (base / name / "saved_model.pb").touch()
    (base / "4").mkdir()  # no graph inside
    (base / "5").touch()  # a file
    assert versions.version_folders(base) == {}
    assert _publish(base) == 6
    assert versions.version_folders(base) == {6: base / "6"}


def test_names_are_read_as_tensorflow_serving_reads_them(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    for name in ("007", "07", "0", "12", "0012", str(2**63 - 1)):
        (base / name).mkdir(parents=True)
        (base / name / "saved_model.pb").touch()
    (base / "7").mkdir()  # no graph inside: does not hide the others
    found = versions.version_folders(base)
    names = {0: "0", 7: "07", 12: "12", 2**63 - 1: str(2**63 - 1)}
    assert list(found.items()) == [(version, base / name) for version, name in names.items()]


def test_the_next_version_follows_one_with_zeros_before_it(tmp_path: Path) -> None:
    (tmp_path / "shop" / "007").mkdir(parents=True)
    assert _publish(tmp_path / "shop") == 8


def test_listing_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert versions.version_folders(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["sh op", "shop:1", "été", "..", "shop\n", "12"])
def test_bad_model_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError), versions.new_version(tmp_path / name):
        pass


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "shop").touch()
    with pytest.raises(InputError, match="is a file"):
        versions.check_model_folder(tmp_path / "shop")


def test_the_server_may_be_another_user(tmp_path: Path) -> None:
    version = tmp_path / "shop" / str(_publish(tmp_path / "shop"))
    assert version.stat().st_mode & 0o055 == 0o055 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_concurrent_exporters_each_get_a_number(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    count = 24
    start = threading.Barrier(count)
    numbers: dict[int, str] = {}

    def export(text: str) -> None:
        start.wait()
        numbers[_publish(base, text)] = text

    threads = [threading.Thread(target=export, args=(str(i),)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(versions.version_folders(base)) == list(range(1, count + 1)) == sorted(numbers)
    for number, text in numbers.items():
        assert (base / str(number) / "variables" / "data").read_text() == text
    assert len(os.listdir(base)) == count


# The exporter that gets killed: it imports once, then forks a child for each line it reads. A child
# publishes a version of 30 files, slowly, with the hashes of its files beside them; it is killed
# after the given delay, unless that is empty. A child that has ended is a zombie until it is waited
# for, so the kill cannot hit another process.
_EXPORTER = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
from serving.versions import new_version

def export(base):
    with new_version(base) as draft:
        hashes = {}
        for i in range(30):
            data = os.urandom(20_000)
            file = draft.path / f"part{i % 3}" / f"{i}.bin"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
            hashes[str(file.relative_to(draft.path))] = hashlib.sha256(data).hexdigest()
            time.sleep(0.001)
        (draft.path / "hashes.json").write_text(json.dumps(hashes))
        (draft.path / "saved_model.pb").write_text("graph")

for line in sys.stdin:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        export(Path(sys.argv[1]))
        os._exit(0)
    if line.strip():
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(time.monotonic() - began, flush=True)
"""


def _assert_whole(version: Path) -> None:
    assert (version / "saved_model.pb").read_text() == "graph"
    hashes = json.loads((version / "hashes.json").read_text())
    assert len(hashes) == 30
    for name, digest in hashes.items():
        assert hashlib.sha256((version / name).read_bytes()).hexdigest() == digest


def test_killed_fifty_times_it_never_shows_half_a_version(tmp_path: Path) -> None:
    base = tmp_path / "shop"
    exporter = subprocess.Popen(
        [sys.executable, "-c", _EXPORTER, str(base)],
        cwd=_REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert exporter.stdin is not None
    assert exporter.stdout is not None
    exporter.stdin.write("\n")
    exporter.stdin.flush()
    duration = float(exporter.stdout.readline())
    moments = random.Random(7)
    drafts_left = 0
    for _ in range(50):
        exporter.stdin.write(f"{moments.uniform(0, 1.2 * duration)}\n")
        exporter.stdin.flush()
        exporter.stdout.readline()
        numbered = [path for path in base.iterdir() if path.name.isdigit()]
        assert sorted(int(path.name) for path in numbered) == list(versions.version_folders(base))
        for version in numbered:
            _assert_whole(version)
        drafts = [path for path in base.iterdir() if not path.name.isdigit()]
        assert len(drafts) <= 1  # what earlier kills left was removed by this run
        drafts_left += len(drafts)
    exporter.stdin.close()
    assert exporter.wait(timeout=10) == 0
    assert drafts_left >= 10, "the kills came too late to test anything"

    before = list(versions.version_folders(base))
    assert _publish(base) == before[-1] + 1
    assert all(path.name.isdigit() for path in base.iterdir())
