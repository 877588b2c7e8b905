"""Snapshot -> tokenizer, with the entry's casing and length, safe to share between threads."""

from medvllm.loading.tokenizer.load import load_tokenizer

__all__ = ["load_tokenizer"]
