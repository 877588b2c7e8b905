"""What may be typed for a model."""

from pathlib import Path

import pytest

from medvllm.errors import ModelNameError
from medvllm.names import parse, valid_name


@pytest.mark.parametrize(
    ("text", "kind", "name", "suffix"),
    [
        ("biobert", "name", "biobert", None),
        ("biobert@3", "name", "biobert", "3"),
        ("biobert@production", "name", "biobert", "production"),
        ("models:/biobert/3", "name", "biobert", "3"),
        ("models:/biobert@production", "name", "biobert", "production"),
        ("models:/acme/biobert/3", "name", "acme/biobert", "3"),
        ("acme/biobert", "name", "acme/biobert", None),
        ("acme/biobert@v1.0", "name", "acme/biobert", "v1.0"),
        ("hf://acme/biobert", "hub", "acme/biobert", None),
        ("hf://acme/biobert@main", "hub", "acme/biobert", "main"),
        ("/models/biobert", "folder", "/models/biobert", None),
        ("/models/a@b", "folder", "/models/a@b", None),
        ("file:///models/my%20bert", "folder", "/models/my bert", None),
    ],
)
def test_each_way_to_say_a_model(text: str, kind: str, name: str, suffix: str | None) -> None:
    """The grammar, one row a form."""
    ref = parse(text)
    assert (ref.kind, ref.name, ref.suffix) == (kind, name, suffix)


def test_relative_folders_and_paths_are_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./dir, ~/dir and a pathlib path."""
    monkeypatch.chdir(home)
    assert parse("./bert").name == str(home / "bert")
    assert parse("~/bert").name == str(home / "bert")
    assert parse(Path("bert")).name == str(home / "bert")
    assert parse(home / "bert").kind == "folder"


BAD = [
    "",
    "  ",
    " biobert",
    "biobert ",
    "a\x00b",
    "a\nb",
    "a\u202eb",
    "a\u200bb",
    "\ud800",
    "x" * 10_000,
    "@3",
    "a@",
    "a@b@c",
]
LINKS = [
    "http://example.org/x",
    "s3://b/x",
    "hf://",
    "hf://a b/c",
    "hf://a/b/c",
    "models:/x",
    "models:/",
    "file://host/x",
]


@pytest.mark.parametrize("text", [*BAD, *LINKS, 3, None, b"biobert", ["biobert"], "/" + "x" * 5000])
def test_what_is_no_name_is_refused(text: object) -> None:
    """With our error, whatever it is, and without echoing ten thousand characters."""
    with pytest.raises(ModelNameError) as caught:
        parse(text)
    message = str(caught.value)
    assert 0 < len(message) < 400
    assert message.isprintable() or message.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", [*BAD, "./x", "/x", "~/x", "hf://a/b", "models:/a/1", "a@3", "a\\b", 3, None])
def test_what_cannot_be_registered(text: object) -> None:
    """A registered name never reads as a folder, a link or a version."""
    with pytest.raises(ModelNameError):
        valid_name(text)


@pytest.mark.parametrize("text", ["biobert", "acme/biobert", "my model (v2)", "Modèle-médical", "a.b_c-d:e", "x" * 200])
def test_what_can_be_registered(text: str) -> None:
    """Letters of any script, and the usual signs."""
    assert valid_name(text) == text
