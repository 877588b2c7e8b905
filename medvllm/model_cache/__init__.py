"""Which models are in memory, how large they are, and which one is evicted first.

The room is given a load function and loads nothing itself.
"""

from medvllm.model_cache.accounts import CachedModel
from medvllm.model_cache.cache import ModelCache
from medvllm.model_cache.default_budget import default_cpu_budget
from medvllm.model_cache.limits import Limits
from medvllm.model_cache.plan import KnownBy, Leaving, Need, Plan
from medvllm.model_cache.statistics import DeviceUse, Reason, Statistics
from medvllm.model_cache.value_cache import ValueCache

__all__ = [
    "CachedModel",
    "DeviceUse",
    "KnownBy",
    "Leaving",
    "Limits",
    "ModelCache",
    "Need",
    "Plan",
    "Reason",
    "Statistics",
    "ValueCache",
    "default_cpu_budget",
]
