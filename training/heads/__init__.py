"""Few-shot heads on the towers: classes of texts, and the probability of a click."""
