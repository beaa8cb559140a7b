"""Recommendations from histories: models, their fit, and how they are measured."""
