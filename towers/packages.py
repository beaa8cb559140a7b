"""Versions of the packages that a result may depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "fewshot-towers",
    "keras",
    "keras-hub",
    "numpy",
    "pyarrow",
    "scann",
    "tensorflow",
    "tensorflow-recommenders",
    "tensorflow-text",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
