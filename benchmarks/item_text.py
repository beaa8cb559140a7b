"""What the columns of the item text bring: zero-shot towers alone and with words.

Training queries of ESCI, training and validation queries of the sample shop, whole catalogues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from reporting import arguments, esci, judgements, report

from towers import ItemTemplate, Retriever, TextSettings
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.interactions import Interactions
from training.lexical_weight import PRIOR_WEIGHT, fused, ndcg_by_query
from training.train import render_items

_SHOP = Path(__file__).parents[1] / "examples" / "shop"
ESCI_TEXTS = {
    "{title}": 128,
    "{title}[ {brand}][ {description}]": 128,
    "{title}[ {brand}][ {color}][ {description}]": 128,
    "{title}[ {brand}][ {color}][ {bullet_points}][ {description}]": 128,
    # A second length of the same text.
    "{title}[ {brand}][ {color}][ {bullet_points}][ {description}] ": 256,
}
SHOP_TEXTS = {
    "{title}": 128,
    "{title}[ {brand}][ {description}]": 128,
    "{title}[ {brand}][ {category}][ {description}]": 128,
    "{title}[ {brand}][ {category}][ {colour}][ {description}]": 128,
    "{title}[ {brand}][ {category}][ {colour}][ {availability}][ {description}]": 128,
}


def main() -> None:
    """Runs the benchmark."""
    options = arguments(main.__doc__ or "").parse_args()
    products, _ = esci(options.data)
    shop = Catalog.read(_SHOP / "catalog.csv")
    gains = np.array([0, 1, 10, 100], np.float32)
    rows: list[dict[str, Any]] = []
    for text, length in ESCI_TEXTS.items():
        queries = judgements(options.data, "esci", "train", products)
        rows.append(_row("esci train", text, length, products, queries, gains))
    for split in ("train", "valid"):
        queries = Interactions.read(_SHOP / f"{split}.csv", shop)
        for text, length in SHOP_TEXTS.items():
            rows.append(_row(f"shop {split}", text, length, shop, queries, np.arange(9.0)))
    report("item_text", "nDCG@10 by the columns of the item text", rows)


def _row(
    name: str,
    text: str,
    length: int,
    catalog: Catalog,
    queries: Interactions,
    gain_of: np.ndarray,
) -> dict[str, Any]:
    template = ItemTemplate(text)
    retriever = Retriever.from_preset(text=TextSettings(text, 32, length))
    items = retriever.encode_items(render_items(template, catalog), dtype=fast_dtype())
    cosine = retriever.encode_queries(queries.queries) @ items.T
    words = lexical_scorer(template, catalog)(queries.queries)
    gains = np.zeros(cosine.shape, np.float32)
    gains[queries.query_row, queries.item_row] = gain_of[queries.grade]
    asked = gains.any(axis=1)

    def mean(scores: np.ndarray) -> float:
        return round(float(ndcg_by_query(scores, gains)[asked].mean()), 4)

    return {
        "queries": f"{name}, {int(asked.sum())}",
        "item text": text.strip(),
        "tokens": length,
        "towers alone": mean(cosine),
        "with words": mean(fused(cosine, words, PRIOR_WEIGHT)),
        "words alone": mean(words),
    }


if __name__ == "__main__":
    main()
