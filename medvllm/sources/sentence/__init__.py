"""What a folder of sentence-transformers declares about its vectors."""

from medvllm.sources.sentence.declaration import Declaration, Dense, LayerNorm, Module, Normalize
from medvllm.sources.sentence.reading import read_declaration

__all__ = ["Declaration", "Dense", "LayerNorm", "Module", "Normalize", "read_declaration"]
