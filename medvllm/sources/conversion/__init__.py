"""Pickled weights as safetensors: converted once, in a process that can reach nothing else."""

from medvllm.sources.conversion.converted_copy import RECORD, as_safetensors, converted_folder, find_flaws

__all__ = ["RECORD", "as_safetensors", "converted_folder", "find_flaws"]
