"""Writes the answers for a corpus: JSON, CSV, Parquet, vectors or plain texts."""
