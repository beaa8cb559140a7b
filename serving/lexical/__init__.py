"""Lexical retrieval in the graph: BM25 over the catalogue's words, fused with the towers."""

from __future__ import annotations

from serving.lexical.fusion import fuse, fused_top_k
from serving.lexical.lexical_index import LexicalIndex

__all__ = ["LexicalIndex", "fuse", "fused_top_k"]
