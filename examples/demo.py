"""The whole path on the sample shop: train, evaluate, export, serve, ask.

Runs the commands a user would type; `make demo` calls it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOP = Path("examples/shop")
RUN = Path("runs/demo")
EXPORT = Path("saved_models/sample-shop")
QUERIES = (
    "something to keep coffee hot on my desk",
    "stop the cat scratching the sofa",
    "left handed scissors",
    "spatchula for non stick pan",
)
USER = "u011"  # has a dog, and wrote three reviews


def towers(*arguments: object) -> list[str]:
    """The command line of `towers ARGUMENTS`."""
    return [sys.executable, "-m", "towers", *map(str, arguments)]


def step(title: str, *arguments: object) -> None:
    """Runs one command and shows it."""
    print(f"\n== {title}\n$ towers {' '.join(map(_quoted, arguments))}", flush=True)
    subprocess.run(towers(*arguments), check=True, cwd=ROOT)


def _quoted(argument: object) -> str:
    text = str(argument)
    return f'"{text}"' if " " in text else text


def history(user: str) -> list[str]:
    """What a user of the shop took, the oldest first."""
    lines = (ROOT / SHOP / "histories.jsonl").read_text("utf-8").splitlines()
    return next(row["items"] for row in map(json.loads, lines) if row["user_id"] == user)


def main() -> None:
    """Runs the demo."""
    start = time.perf_counter()
    for folder in (RUN, EXPORT):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    data = ("--catalog", SHOP / "catalog.csv", "--interactions")
    step(
        "Zero-shot towers, for comparison",
        *("train", *data, SHOP / "train.csv", "--method", "zero-shot", "--output", RUN / "zero"),
    )
    step(
        "Few-shot adaptation on the shop's training queries, and on what customers took",
        *("train", *data, SHOP / "train.csv", "--histories", SHOP / "histories.jsonl"),
        *("--output", RUN / "adapted"),
    )
    for title, name, options in (
        ("zero-shot towers alone", "zero", ("--lexical", "off")),
        ("adapted towers alone", "adapted", ("--lexical", "off")),
        ("adapted towers and words, weighed by training", "adapted", ()),
    ):
        step(
            f"Quality on queries never seen: {title}",
            *("evaluate", "--model", RUN / name, *data, SHOP / "test.csv", *options),
        )
    step(
        "Export with the index inside",
        *("export", "--model", RUN / "adapted", "--catalog", SHOP / "catalog.csv"),
        *("--output", EXPORT),
    )
    arguments = ("serve", "--model-base-path", EXPORT, "--host", "127.0.0.1", "--port", 0)
    print(f"\n== Serve it\n$ towers {' '.join(map(str, arguments))} --rest-port 0", flush=True)
    server = subprocess.Popen(
        towers(*arguments, "--rest-port", 0), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        grpc_port = rest_port = ""
        assert server.stdout is not None
        for line in server.stdout:
            print(line, end="", flush=True)
            if line.startswith("gRPC on "):
                grpc_port = line.strip().rpartition(":")[2]
            elif line.startswith("REST on "):
                rest_port = line.split("/v1/")[0].rpartition(":")[2]
            elif line.startswith("Ready"):
                break
        else:
            raise SystemExit("the server ended before it was ready")
        for query in QUERIES:
            ask = ("query", query, "--model", EXPORT.name, "--k", 3)
            step(
                "Ask over gRPC",
                *(*ask, "--server", f"localhost:{grpc_port}", "--catalog", SHOP / "catalog.csv"),
            )
        step("Ask over REST", *ask, "--rest", "--server", f"localhost:{rest_port}", "--json")
        step(
            "One customer: what was taken and written",
            *("profile", "--user", USER, "--catalog", SHOP / "catalog.csv"),
            *("--histories", SHOP / "histories.jsonl", "--reviews", SHOP / "reviews.csv"),
        )
        step(
            "What may follow for this customer, because of what, and by which part of the score",
            *("recommend", *history(USER), "--model", EXPORT.name, "--k", 5),
            *("--server", f"localhost:{grpc_port}", "--catalog", SHOP / "catalog.csv"),
            *("--explain", RUN / "adapted"),
        )
    finally:
        server.terminate()
        server.wait(timeout=60)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
