"""What several processes that hold one model take together: `python -m benchmarks.sharing METHOD NUMBER FOLDER DTYPE`.

Prints JSON: bytes of the proportional set size (PSS) that loading and reading the model added, in files and in memory
of the processes' own. A page that eight processes share counts for an eighth in each.
"""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

_WAIT_S = 120


def main() -> None:
    """Start the processes and add up what they report."""
    method, number, folder, dtype = sys.argv[1:]
    if method == "fork":
        _import()
    context: Any = multiprocessing.get_context(method)
    barrier, reports = context.Barrier(int(number)), context.Queue()
    processes = [context.Process(target=_hold, args=(folder, dtype, barrier, reports)) for _ in range(int(number))]
    for process in processes:
        process.start()
    held = [reports.get(timeout=_WAIT_S) for _ in processes]
    for process in processes:
        process.join()
    print(json.dumps({what: sum(report[what] for report in held) for what in ("shared", "private")}))


def _hold(folder: str, dtype: str, barrier: Any, reports: Any) -> None:
    """Hold a model until all processes have measured; they do each step at the same time."""
    registry = _import()
    barrier.wait(_WAIT_S)
    before = _pss()
    barrier.wait(_WAIT_S)
    model: Any = registry.load_model(folder, dtype=dtype)
    for parameter in model.parameters():
        parameter.detach().view(-1)[::256].sum()  # one number of every page
    barrier.wait(_WAIT_S)
    after = _pss()
    barrier.wait(_WAIT_S)
    reports.put({what: after[what] - before[what] for what in after})


def _import() -> Any:
    import torch
    import transformers

    from medvllm.engine.model_runner import registry

    torch.set_num_threads(1)
    _ = transformers.BertModel  # imported on access: its pages are no part of what is measured
    return registry


def _pss() -> dict[str, int]:
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024
    return {"shared": fields["Pss_File:"] + fields["Pss_Shmem:"], "private": fields["Pss_Anon:"]}


if __name__ == "__main__":
    main()
