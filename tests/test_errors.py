"""The error tree: its shape, its messages, and that errors travel between processes."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from medvllm import errors
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import MedVLLMError, ModelNameError, RequestError
from medvllm.near_names import near_names

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, MedVLLMError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle_with_its_facts(kind: type[MedVLLMError]) -> None:
    """Ray and process pools send exceptions as pickles."""
    error = pickle.loads(pickle.dumps(kind("what\nhow", model="m", candidates=("a", "b"))))
    assert type(error) is kind and str(error) == "what\nhow"
    assert vars(error) == {"model": "m", "candidates": ("a", "b")}


def test_everything_exported_exists_and_every_error_is_exported() -> None:
    """`__all__` is the tree."""
    assert {kind.__name__ for kind in CLASSES} == set(errors.__all__)


def test_errors_are_also_the_builtin_kind_that_callers_expect() -> None:
    """Code that catches KeyError, ValueError or OSError keeps working."""
    assert issubclass(errors.ModelNotFoundError, KeyError)
    assert issubclass(errors.ModelNameError, ValueError)
    assert issubclass(errors.HubUnreachableError, OSError)
    assert issubclass(errors.WeightsMismatchError, RuntimeError)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("biobret-v1.2", ["biobert-base-cased-v1.2"]),
        ("biobrt", ["biobert-base-cased-v1.2"]),
        ("clinicalbert", ["emilyalsentzer/Bio_ClinicalBERT"]),
        ("gpt2", []),
    ],
)
def test_near_names_are_found_in_long_ones(typed: str, offered: list[str]) -> None:
    """A misspelt beginning, or the name without its organisation, is enough."""
    assert near_names(typed, ["biobert-base-cased-v1.2", "emilyalsentzer/Bio_ClinicalBERT"], 3) == offered


@pytest.mark.parametrize("wrong", [None, 5, b"x", ["x"], {}, True])
def test_what_is_no_text_where_a_name_or_a_path_belongs(registry: ModelRegistry, wrong: Any) -> None:
    """One of our errors at each method, and nothing is made."""
    runner = ModelRunner(wrong, registry=registry)
    calls: tuple[Callable[[], object], ...] = (
        *(lambda call=call: call(wrong) for call in (registry.load_model, registry.pull, registry.evict)),
        *(lambda call=call: call(["x"]) for call in (runner.entities, runner.embed, runner.fill_mask)),
        *(runner.record_baseline, runner.check_baseline, lambda: registry.record_baseline(wrong, [])),
        *(lambda: registry.import_bundle(wrong), lambda: registry.export(wrong, "biobert-base-cased-v1.2")),
        *(lambda: registry.catalog.set_alias(wrong, "a", 1), lambda: registry.catalog.protect(wrong, "a")),
    )
    for call in calls:
        with pytest.raises((RequestError, ModelNameError), match="must be text"):
            call()
