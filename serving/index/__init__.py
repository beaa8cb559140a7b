"""Indexes: from query embeddings to the ids of the nearest items, inside a TensorFlow graph."""
