"""A program that answers lists of texts with one library and says how long it took. `peers.Program` starts it.

Arguments: the library, the model's folder, the number of threads. Each line of standard input is a request in JSON with
the path of the `texts`, the `batch` size and the `limit` of tokens; the answer is in the same folder.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[list[str], int, int], Any]


def medvllm_embed(folder: str) -> Answer:
    """Vectors of medvllm: `batch` is the number of tokens that run together, if it is not 0."""
    from medvllm.engine.model_runner.inference import torch_forward

    runner = _medvllm(folder, "generic", long_input="truncate", pooling="mean")
    budget = torch_forward.BUDGETS["cpu"]

    def embed(texts: list[str], batch: int, limit: int) -> Any:
        torch_forward.BUDGETS["cpu"] = batch or budget
        return runner.embed(texts).vectors

    return embed


def medvllm_padded(folder: str) -> Answer:
    """Vectors of medvllm with padding, as for a model that takes no rows of several texts."""
    from medvllm.loading import packed_attention

    packed_attention.pack_attention = lambda module: None
    return medvllm_embed(folder)


def sentence_transformers(folder: str) -> Answer:
    """Vectors of `SentenceTransformer.encode`."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")

    def embed(texts: list[str], batch: int, limit: int) -> Any:
        model.max_seq_length = limit
        return model.encode(texts, batch_size=batch, show_progress_bar=False)

    return embed


def embedding_pipeline(folder: str) -> Answer:
    """Means of the token vectors of transformers' pipeline. It has no pooling."""
    import torch
    from transformers import pipeline

    extract: Any = pipeline("feature-extraction", folder, device="cpu")

    def embed(texts: list[str], batch: int, limit: int) -> Any:
        cut = {"truncation": True, "max_length": limit}
        found = extract(texts, batch_size=batch, return_tensors=True, tokenize_kwargs=cut)
        return torch.cat([rows.mean(1) for rows in found]).numpy()

    return embed


def medvllm_entities(folder: str) -> Answer:
    """Spans of medvllm."""
    runner = _medvllm(folder, "clinical")
    return lambda texts, batch, limit: [
        [(span.start, span.end, span.label) for span in found.spans] for found in runner.entities(texts)
    ]


def entity_pipeline(folder: str) -> Answer:
    """Spans of transformers' pipeline."""
    from transformers import pipeline

    tag: Any = pipeline("token-classification", folder, aggregation_strategy="first", device="cpu")
    return lambda texts, batch, limit: [
        [(span["start"], span["end"], span["entity_group"]) for span in found] for found in tag(texts, batch_size=batch)
    ]


def openmed(folder: str) -> Answer:
    """Spans of openmed, which takes one text at a time."""
    from openmed import ModelLoader, analyze_text

    loader = ModelLoader()
    return lambda texts, batch, limit: [
        [
            (entity["start"], entity["end"], entity["label"])
            for entity in analyze_text(text, folder, loader=loader, aggregation_strategy="first").to_dict()["entities"]
        ]
        for text in texts
    ]


def _medvllm(folder: str, model_type: Any, **facts: Any) -> Any:
    from medvllm.engine.model_runner import ModelRegistry

    registry = ModelRegistry()
    registry.register("model", model_type, model_path=folder, **facts)
    return registry.runner("model")


def main() -> None:
    """Answer requests until the input ends."""
    import numpy as np
    import torch

    library, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answer: Answer = globals()[library](folder)
    for line in sys.stdin:
        request = json.loads(line)
        texts = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
        wall, cpu = time.perf_counter(), time.process_time()
        found = answer(texts, request["batch"], request["limit"])
        took = {"wall": time.perf_counter() - wall, "CPU": time.process_time() - cpu}
        path = Path(request["texts"]).with_suffix(".answer")
        if isinstance(found, np.ndarray):
            path.write_text(json.dumps(found.tolist()), encoding="utf-8")
        else:
            path.write_text(json.dumps(found), encoding="utf-8")
        print(f"took {json.dumps(took)}", flush=True)


if __name__ == "__main__":
    main()
