"""The page in Chromium: typed into, clicked, and looked at by axe-core, also on a phone and without JavaScript."""

import shutil
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from tests.support.pages import HOSTILE_NAME, HOSTILE_TEXT, registry_of_pages
from tests.support.serving import serving
from tests.support.tool_environment import run_client

NOTE = "😀a\n\nDr. Müller saw Jones."

chromium = shutil.which("chromium")
pytestmark = pytest.mark.skipif(chromium is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return registry_of_pages(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def seen(registry: ModelRegistry) -> dict[str, Any]:
    with serving(registry) as client:
        base = str(client.base_url).rstrip("/")
        found: dict[str, Any] = run_client("browser.py", base, str(chromium), HOSTILE_NAME, HOSTILE_TEXT)
    return found


def test_nothing_is_loaded_from_elsewhere_and_nothing_fails(seen: dict[str, Any]) -> None:
    """The console is empty, no script of a name or a text ran, and the browser keeps no text."""
    assert (seen["console"], seen["elsewhere"], seen["dialogs"]) == ([], [], [])
    assert "ller" not in seen["kept"]


def test_each_view_is_accessible_and_fits_a_phone(seen: dict[str, Any]) -> None:
    """WCAG 2.2 AA as far as axe-core can see, in light at 1440 pixels and in dark at 390."""
    assert (seen["violations"], seen["too_wide"]) == ({}, [])


def test_names_and_texts_are_shown_as_they_are(seen: dict[str, Any]) -> None:
    """Also those that would be a script."""
    assert seen["hostile"] == [f"Try {HOSTILE_NAME}", HOSTILE_TEXT]


def test_places_are_those_of_the_text_in_the_field(seen: dict[str, Any], registry: ModelRegistry) -> None:
    """Emoji and line breaks count as one, with and without JavaScript."""
    [expected] = ModelRunner("deid", registry=registry).entities([NOTE])
    places = [f"{span.start}–{span.end}" for span in expected.spans]
    assert seen["field"] == NOTE and seen["places"] == seen["plain"]["places"] == places and places


def test_the_list_follows_what_is_typed(seen: dict[str, Any]) -> None:
    """The key "/" begins a search, and the field keeps the focus."""
    assert seen["typed"]["names"] == "minilm" and "q=minilm" in seen["typed"]["address"] and seen["focus"] == "q"


def test_answers_and_refusals_appear(seen: dict[str, Any]) -> None:
    """Of each task. What was not read is said."""
    answers = seen["answers"]
    assert "Not all of the text was read." in answers["cut/entities"] and "must be a number" in seen["refused"]
    assert " tokens." in answers["writer/complete"] and answers["writer/complete"] == seen["plain"]["answer"]
    assert all("Do it from a program" in answer for answer in answers.values())


def test_it_works_without_javascript(seen: dict[str, Any], registry: ModelRegistry) -> None:
    """Filters are links, and forms are sent as they are."""
    assert seen["plain"]["rows"] == len(registry.list_models(search="deid")) and "q=deid" in seen["plain"]["address"]


def test_paper_gets_the_answer_in_dark_ink(seen: dict[str, Any]) -> None:
    """Also from a browser that is dark. The form is not printed."""
    assert seen["printed"] == ["rgb(23, 32, 31)", "rgb(255, 255, 255)", False, True]
