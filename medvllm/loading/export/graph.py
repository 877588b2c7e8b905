"""The graph of a model, as ONNX."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from medvllm.engines.export import GRAPH, GRAPH_DATA, OPSETS
from medvllm.loading.export.parts import Part
from medvllm.loading.export.shortage import is_shortage

_EXAMPLE = (2, 16)  # windows and tokens; both are free in the graph


class NotExportable(Exception):
    """A model that has no graph; the message says why."""


def write_graph(part: Part, folder: Path) -> None:
    """Write the graph of a part of a model, with its weights beside it.

    Raises:
        NotExportable: torch cannot export the model.
    """
    _export(part, folder, OPSETS[0])
    if _has_rotary_operator(folder / GRAPH):
        for name in (GRAPH, GRAPH_DATA):
            (folder / name).unlink(missing_ok=True)
        _export(part, folder, OPSETS[1])


def _export(part: Part, folder: Path, opset: int) -> None:
    names = part.inputs
    example = torch.full(_EXAMPLE, 1 if part.padding_id == 0 else 0, dtype=torch.int64)
    known = {"input_ids": example, "attention_mask": torch.ones_like(example)}
    known["token_type_ids"] = torch.zeros_like(example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # Without `eval`, an export puts the model into training mode.
    wrapped = (_WithTypes if "token_type_ids" in names else _WithoutTypes)(part).eval()
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapped,
                (),
                str(folder / GRAPH),
                kwargs={name: known[name] for name in names},
                dynamo=True,
                opset_version=opset,
                external_data=True,
                input_names=names,
                output_names=["output"],
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in names},
                verbose=False,
            )
    except Exception as error:  # an export may raise anything
        if is_shortage(error):
            raise
        raise NotExportable(f"torch cannot export it ({type(error).__name__})") from error


def _has_rotary_operator(graph: Path) -> bool:
    """Return whether a graph has the operator for rotary positions.

    torch gives it the positions of one row, and ONNX Runtime wants those of each row.
    """
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    return any(node.op_type == "RotaryEmbedding" for node in nodes)


class _WithoutTypes(torch.nn.Module):
    def __init__(self, part: Part) -> None:
        super().__init__()
        self.module, self._part = part.module, part

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self._part.output(self.module(input_ids=input_ids, attention_mask=attention_mask))


class _WithTypes(_WithoutTypes):
    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        found = self.module(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self._part.output(found)
