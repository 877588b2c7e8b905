"""Which models are in memory, what they weigh, and who leaves first. It is handed a load function and loads nothing."""

from medvllm.residency.accounts import Resident
from medvllm.residency.budget import machine_bytes
from medvllm.residency.cache import Limits, ModelCache
from medvllm.residency.once import Once
from medvllm.residency.plan import Leaving, Need, Plan
from medvllm.residency.statistics import DeviceUse, Reason, Statistics

__all__ = [
    "DeviceUse",
    "Leaving",
    "Limits",
    "ModelCache",
    "Need",
    "Once",
    "Plan",
    "Reason",
    "Resident",
    "Statistics",
    "machine_bytes",
]
