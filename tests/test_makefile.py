"""Which Python the Makefile makes its environment of, with scripts that only say a version."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and nothing on its PATH but the tools it needs."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(MAKEFILE.with_name(name), tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "sed", "touch", "mkdir", "cp", "make", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def python(project: Path, name: str, version: str | None) -> Path:
    """A Python of a version, whose environments hold itself; None: a shim for nothing."""
    path = project / "bin" / name
    says = f"echo {version}" if version else "exit 127"
    lines = ["#!/bin/bash", 'if [ "$1" = -c ]; then', says, 'elif [ "$2" = venv ]; then']
    lines += ['mkdir -p "$3/bin"; cp "$0" "$3/bin/python"', "fi"]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": str(project / "bin")}
    for name in ("PYTHON", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    return subprocess.run(
        ["make", "setup", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_tested_version_is_looked_for_by_its_name(project: Path) -> None:
    python(project, "python3", "3.13")
    python(project, "python3.11", "3.11")
    done = make(project)
    assert done.returncode == 0, done.stderr
    assert "== Making .venv of python3.11, Python 3.11\n" in done.stdout
    assert (project / ".venv" / "ready").exists()
    again = make(project)
    assert (again.returncode, again.stdout.count("==")) == (0, 0)


def test_python3_will_do_where_it_is_of_that_version(project: Path) -> None:
    python(project, "python3.11", None)
    python(project, "python3", "3.11")
    done = make(project)
    assert done.returncode == 0, done.stderr
    assert "== Making .venv of python3, Python 3.11\n" in done.stdout


def test_what_was_found_and_what_is_needed_is_said(project: Path) -> None:
    python(project, "python3.11", None)
    python(project, "python3", "3.13")
    python(project, "python", "2.7")
    done = make(project)
    assert done.returncode == 2
    assert "Python 3.11 is needed" in done.stderr
    assert "python3 is 3.13, python is 2.7," in done.stderr
    assert "make PYTHON=/path/to/python3.11" in done.stderr
    assert not (project / ".venv").exists()


def test_no_python_at_all(project: Path) -> None:
    done = make(project)
    assert done.returncode == 2
    assert "found none" in done.stderr


def test_a_python_that_is_named_is_the_only_candidate(project: Path) -> None:
    python(project, "python3.11", "3.11")
    other = python(project, "my python", "3.10")
    done = make(project, f"PYTHON={other}")
    assert done.returncode == 2
    assert f"{other} is 3.10," in done.stderr
    python(project, "my python", "3.11")
    assert make(project, f"PYTHON={other}").returncode == 0


def test_an_environment_of_another_version_is_refused(project: Path) -> None:
    python(project, "python3.11", "3.11")
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(python(project, "old", "3.10"), project / ".venv" / "bin" / "python")
    done = make(project)
    assert done.returncode == 2
    assert ".venv is of Python 3.10, needed is 3.11: remove it with make clean" in done.stderr


def test_an_environment_that_was_not_made_whole_is_made_again(project: Path) -> None:
    path = python(project, "python3.11", "3.11")
    whole = path.read_text()
    path.write_text(whole.replace('bin/python"\n', 'bin/python"; exit 1\n'))  # no ensurepip
    assert make(project).returncode == 2
    path.write_text(whole)
    done = make(project)
    assert done.returncode == 0, done.stdout
    assert "== Making .venv" in done.stdout


def test_help_is_the_head_of_the_file(project: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("make demo")
    assert len(done.stdout.splitlines()) == 3
