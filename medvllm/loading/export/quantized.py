"""The graph of a model with weights in int8."""

import logging
from pathlib import Path

from medvllm.engines.cpu import saturates_int8
from medvllm.engines.export import GRAPH, GRAPH_DATA
from medvllm.loading.export.graph import NotExportable


def write_int8_graph(source: Path, folder: Path) -> None:
    """Write a graph in int8, made of one in float32.

    The weights of products of matrices get a scale for each column. What they are multiplied with is rounded when the
    graph runs. A product that narrows stays in float32: the last one of a feed-forward block, whose inputs have
    outliers, and heads. It loses the most.

    Args:
        source: The folder of the export in float32.
        folder: Where the graph is written.

    Raises:
        NotExportable: The graph has no product that could be computed in int8.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source / GRAPH, load_external_data=False).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    products = {
        node.name: shapes[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2
    }
    chosen = [name for name, (size_in, size_out) in products.items() if size_in <= size_out]
    if not chosen:
        raise NotExportable("it has no product of matrices that could be computed in int8")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the library advises a step that the exporter has done
    try:
        quantize_dynamic(
            source / GRAPH,
            folder / GRAPH,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            # Where two products of bytes are added in 16 bits, weights of 7 bits keep the sum in range.
            reduce_range=saturates_int8(),
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    finally:
        root.setLevel(level)
    if not (folder / GRAPH_DATA).exists():
        raise NotExportable("its weights in int8 were not written")
