"""``python -m towers``."""

from __future__ import annotations

from towers.cli import main

main()
