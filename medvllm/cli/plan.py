"""`medvllm plan`: the memory that a model would take."""

from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Device, Dtype, Json, ModelName, load_options
from medvllm.model_registry import registry
from medvllm.quantities import shown_size


def plan(name: ModelName, device: Device = None, dtype: Dtype = None, as_json: Json = False) -> None:
    """Print the memory that a model would take, and whether it fits the budget. Loads nothing."""
    found = registry.plan(name, **load_options(device, dtype))
    if as_json:
        print_json(found.to_dict())
        return
    is_own = found.stored_dtype in (None, found.dtype)
    rows = [
        ("fits", found.fit),
        ("size", f"{shown_size(found.size_bytes)} ({found.known_by})"),
        ("device", found.device),
        ("dtype", found.dtype if is_own else f"{found.dtype} (the files have {found.stored_dtype})"),
        ("budget", "no limit" if found.budget_bytes is None else shown_size(found.budget_bytes)),
        ("load", "not known yet" if found.load_s is None else f"{found.load_s:.2f} s"),
    ]
    print_table(("MODEL", found.name), rows)
