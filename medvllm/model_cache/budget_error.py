"""The error for a load that does not fit, with the ways out."""

from collections.abc import Mapping

from medvllm.errors import BudgetError
from medvllm.model_cache.plan import Need, Plan
from medvllm.quantities import shown_size

_UNITS = (10**6, "MB"), (10**3, "KB")


def budget_error(plan: Plan, need: Need, pinned: Mapping[str, int], most: int | None) -> BudgetError:
    """Return the error for a load that does not fit.

    Args:
        plan: What the load would take.
        need: The same, with its size in bfloat16.
        pinned: The bytes of the pinned models on its device, by name.
        most: How many models may be in memory; None means no limit.
    """
    limit = plan.budget_bytes
    if limit is None or plan.used_bytes + plan.size_bytes <= limit:
        assert most is not None  # there is a limit that it exceeds, and it is not the budget
        what = f"No room for model {plan.name!r}: at most {most:,} models may be in memory (MEDVLLM_MAX_MODELS)"
        raised = f"MEDVLLM_MAX_MODELS={most + 1}"
    else:
        what = f"Not enough memory for {plan}"
        wanted = plan.used_bytes if plan.fit == "later" else sum(pinned.values())
        raised = f"MEDVLLM_MEMORY_BUDGET={plan.device}={_rounded_up(wanted + plan.size_bytes)}"
    ways = []
    if plan.fit == "later":
        what += ", which callers hold"
        ways.append("end a lease or drop a model that is not needed any more")
    elif pinned:
        ways.append(f"unpin a model ({', '.join(sorted(pinned)[:3])})")
    narrower = need.in_bfloat16()
    if narrower is not None and limit is not None and narrower + sum(pinned.values()) <= limit:
        ways.append(f"load it with dtype='bfloat16' ({shown_size(narrower)})")
    advice = ", or ".join((*ways, f"raise the limit: export {raised}"))
    return BudgetError(f"{what}.\n{advice[0].upper()}{advice[1:]}", plan=plan, model=plan.name)


def _rounded_up(size_bytes: int) -> str:
    """Return a size that is at least as large, short enough to type."""
    unit, name = next(((unit, name) for unit, name in _UNITS if size_bytes >= 10 * unit), (1, "B"))
    return f"{-(-size_bytes // unit)}{name}"
