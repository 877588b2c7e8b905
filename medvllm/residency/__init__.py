"""Which models are in memory, and who leaves: cache, single flight and leases. It never loads by itself."""

from medvllm.residency.cache import ModelCache, Resident

__all__ = ["ModelCache", "Resident"]
