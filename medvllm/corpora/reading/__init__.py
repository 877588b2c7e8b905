"""Reads the texts of a corpus: a file of lines, JSON, CSV or Parquet, a folder of notes, or a saved dataset."""
