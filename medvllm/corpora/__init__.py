"""Corpora: texts from files of many kinds, in bounded memory, and records to files of many kinds."""
