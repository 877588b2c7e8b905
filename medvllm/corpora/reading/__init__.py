"""Reads the texts of a corpus: a file of lines, JSON, CSV or Parquet, or a folder of notes."""
