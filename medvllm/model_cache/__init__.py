"""Which models are in memory, what they weigh, and who leaves first. It is handed a load function and loads nothing."""

from medvllm.model_cache.accounts import CachedModel
from medvllm.model_cache.budget import machine_bytes
from medvllm.model_cache.cache import Limits, ModelCache
from medvllm.model_cache.once import Once
from medvllm.model_cache.plan import Leaving, Need, Plan
from medvllm.model_cache.statistics import DeviceUse, Reason, Statistics

__all__ = [
    "CachedModel",
    "DeviceUse",
    "Leaving",
    "Limits",
    "ModelCache",
    "Need",
    "Once",
    "Plan",
    "Reason",
    "Statistics",
    "machine_bytes",
]
