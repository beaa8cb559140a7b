"""The whole path on the sample shop: train, evaluate, export, serve, ask.

Runs the commands a user would type; `make demo` calls it.
"""

from __future__ import annotations

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
# The oldest first; no history of the shop is this one.
HISTORY = ("KIT-0010", "KIT-0011", "KIT-0004")
HISTORY_TITLES = "a banneton, a lame, a loaf tin"


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
        step(
            f"What may follow for one customer: {HISTORY_TITLES}",
            *("recommend", *HISTORY, "--model", EXPORT.name, "--k", 5),
            *("--server", f"localhost:{grpc_port}", "--catalog", SHOP / "catalog.csv"),
        )
        step("Ask over REST", *ask, "--rest", "--server", f"localhost:{rest_port}", "--json")
    finally:
        server.terminate()
        server.wait(timeout=60)
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
