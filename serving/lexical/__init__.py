"""Lexical retrieval in the graph: BM25 over the catalogue's words, fused with the towers."""

from __future__ import annotations

from serving.lexical.fusion import fuse, fused_top_k, normalised
from serving.lexical.hybrid_search import HybridSearch
from serving.lexical.lexical_index import LexicalIndex
from serving.lexical.statistics import LexicalStatistics

__all__ = ["HybridSearch", "LexicalIndex", "LexicalStatistics", "fuse", "fused_top_k", "normalised"]
