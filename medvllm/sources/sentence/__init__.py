"""What a folder of sentence-transformers declares about its vectors, or about its scores."""

from medvllm.sources.sentence.declaration import Declaration, Dense, LayerNorm, Module, Normalize
from medvllm.sources.sentence.reading import read_declaration
from medvllm.sources.sentence.scoring import Scoring, read_scoring

__all__ = ["Declaration", "Dense", "LayerNorm", "Module", "Normalize", "Scoring", "read_declaration", "read_scoring"]
