"""Every code block of the specification runs as written, in order, against stand-ins under the ids that it uses."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medvllm.engine.model_runner import ModelType, registry
from medvllm.errors import LoadError
from tests.support import tiny
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub

SPECIFICATION = Path(__file__).parents[1] / "docs" / "specification.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", SPECIFICATION.read_text(), re.MULTILINE | re.DOTALL)
PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
BIOBERT = "dmis-lab/biobert-base-cased-v1.2"
CLINICALBERT = "emilyalsentzer/Bio_ClinicalBERT"


@pytest.fixture
def specified(hub: LoopbackHub, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub with the three repositories, in the shape that each has; the process-wide registry, cleaned afterwards."""
    uncased = tiny.bert_masked_lm(tmp_path / "pubmedbert", do_lower_case=True)
    hub.add(PUBMEDBERT, uncased)
    biobert = tiny.bert_masked_lm(tmp_path / "biobert", weights="bin", tokenizer_files="vocab_only", model_type=False)
    hub.add(BIOBERT, convert(biobert), commit="67c9c25b46986521ca33df05d8540da1210b3256")
    clinical = tiny.bert_masked_lm(
        tmp_path / "clinical", weights="bin", tokenizer_files="vocab_only", architectures=False
    )
    hub.add(CLINICALBERT, convert(clinical), commit="d5892b39a4adaed74b92212a44081509db72f87b")
    yield hub
    for name in {"my-biobert-model", "my-custom-model"} & set(registry.list_models()):
        registry.unregister(name)
    registry.clear_cache()


def _run(block: str, namespace: dict[str, object]) -> None:
    """Run a block statement by statement: a GPU that is not here must give a clear error, and stop nothing else."""
    for statement in ast.parse(block).body:
        code = compile(ast.Module([statement], []), "specification.md", "exec")
        if 'device="cuda"' in ast.unparse(statement).replace("'", '"') and not torch.cuda.is_available():
            with pytest.raises(LoadError, match=r"Device 'cuda:0' is not available here.*\n.*'auto'"):
                exec(code, namespace)
        else:
            exec(code, namespace)


def test_the_specification_has_its_blocks() -> None:
    """A block cannot be lost from the copy without notice."""
    assert len(BLOCKS) == 7
    assert BLOCKS[0] == "from medvllm.engine.model_runner import registry, ModelType\n"


def test_every_block_runs_as_written(specified: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other in one session; the reader's `import torch` is the one thing they take as given."""
    namespace: dict[str, object] = {"torch": torch}
    for block in BLOCKS:
        _run(block, namespace)

    everything: Any = namespace["all_models"]
    biomedical: Any = namespace["biomed_models"]
    assert {"my-biobert-model", "biobert-base-cased-v1.2", CLINICALBERT} <= set(everything)
    assert {name for name, metadata in everything.items() if metadata.model_type is ModelType.BIOMEDICAL} == set(
        biomedical
    )
    assert {"my-biobert-model", "biobert-base-cased-v1.2"} <= set(biomedical) and CLINICALBERT not in biomedical
    assert type(namespace["model"]).__name__ == "BertForMaskedLM"
    assert registry.get_metadata("my-custom-model").model_type is ModelType.CUSTOM
    assert len(registry._model_cache) == 0
    assert "biobert-base-cased-v1.2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["biobert-base-cased-v1.2", CLINICALBERT, BIOBERT])
def test_the_builtin_models_load_cased_at_their_commit(specified: LoopbackHub, name: str) -> None:
    """No model_type, no tokenizer_config, pickled weights: the entry makes up for all three."""
    with registry.lease(name) as lease:
        commit = lease.metadata.source.revision
        assert commit is not None and lease.receipt.snapshot.endswith(f"@{commit}")
        assert type(lease.model).__name__ == "BertForMaskedLM"
        assert lease.tokenizer.tokenize("ALS") != lease.tokenizer.tokenize("als")
        assert lease.tokenizer.tokenize("Aspirin") == ["Aspirin"]
        assert lease.tokenizer.tokenize("é") == ["é"]
        assert lease.tokenizer.model_max_length == 64
    assert set(registry._model_cache) == {lease.metadata.name}
    registry.evict(name)


def test_the_table_of_the_specification_is_true() -> None:
    """Names, types and descriptions of the pre-registered models are the specified ones."""
    rows = re.findall(r"^\| (\S+) \| (BIOMEDICAL|CLINICAL) \| (.+?) \|$", SPECIFICATION.read_text(), re.MULTILINE)
    assert len(rows) == 2
    for name, kind, description in rows:
        metadata = registry.get_metadata(name)
        assert (metadata.model_type.name, metadata.description) == (kind, description)
