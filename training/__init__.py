"""Data in, few-shot adaptation, evaluation and reports."""
