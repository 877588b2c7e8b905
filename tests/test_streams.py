"""Standard streams that are closed, replaced or of a small encoding, and what a command says when it fails."""

import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvllm import progress
from medvllm.cli.faults import without_notes
from medvllm.engine.model_runner import ModelRunner, registry
from tests.support import tiny
from tests.support.console import Outcome, Plain, command

NOTE = "Seen by Dr. Peña on 3 May — “stable”."


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tagger."""
    return tiny.bert_token_classifier(tmp_path_factory.mktemp("streams") / "tagger", ["O", "B-X", "I-X"], seed=2)


def _stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_no_encoding_costs_a_result(tagger: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream lacks is escaped: JSON stays JSON, a catalogue stays TOML, and a span is there."""
    registry.register("peña", "clinical", model_path=tagger, description="the ‘ñ’ model", persist=True)

    def run(*arguments: str) -> Outcome:
        done = command(monkeypatch, *arguments, stdout=_stream(encoding), stderr=_stream(encoding))
        assert done.code == 0, done.err
        return done

    names = [entry["name"] for entry in json.loads(run("list", "--json").out)]
    assert "peña" in names
    assert run("list").out and run("show", "peña").out
    assert run("run", str(tagger), NOTE).out.count("\n") > 0
    spans = json.loads(run("run", str(tagger), NOTE, "--json").out)["results"][0]["spans"]
    assert spans
    exported = _stream(encoding)
    assert command(monkeypatch, "catalog", "export", stdout=exported).code == 0
    buffer = exported.buffer
    assert isinstance(buffer, io.BytesIO) and "peña@1" in tomllib.loads(buffer.getvalue().decode("utf-8"))["models"]
    wrong = command(monkeypatch, "show", "peñas", stdout=_stream(encoding), stderr=_stream(encoding))
    assert wrong.code == 1 and "is not registered" in wrong.err


@pytest.mark.parametrize("make", [lambda: None, Plain, io.StringIO], ids=["closed", "write-only", "text"])
def test_a_closed_or_replaced_stream_costs_nothing(
    tagger: Path, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of the three in turn; the exit code is that of an ordinary run."""
    receipt = tmp_path / "receipt.json"
    for streams in ({"stdout": make()}, {"stderr": make()}, {"stdout": make(), "stderr": make()}):
        for arguments in (["list"], ["list", "--json"], ["show", "biobert-base-cased-v1.2"], ["--help"]):
            assert command(monkeypatch, *arguments, **streams).code == 0
        assert command(monkeypatch, "show", "nothing-such", **streams).code == 1
        assert command(monkeypatch, "run", **streams).code == 2
    streams = {"stdout": make(), "stderr": make()}
    assert command(monkeypatch, "run", str(tagger), NOTE, "--receipt", str(receipt), **streams).code == 0
    assert json.loads(receipt.read_text())["verified"]
    assert command(monkeypatch, "run", str(tagger), NOTE, stdin=None).out
    assert command(monkeypatch, "run", str(tagger), stdin=None).code == 2


def test_streams_that_the_shell_closed() -> None:
    """Their numbers are taken by nothing else: no file of ours is written to as if it were standard output."""
    code = "import sys; from medvllm.cli import main; sys.argv = ['medvllm', 'list', '--json']; main()"
    run = subprocess.run(
        ["bash", "-c", f'exec {sys.executable} -c "{code}" <&- >&-'], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_library_works_beside_any_standard_error(tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar asks whether there is a terminal; a stream that cannot say is none."""

    class Closed:
        def isatty(self) -> bool:
            raise ValueError("I/O operation on closed file")

    for stream in (None, object(), Closed()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert ModelRunner(tagger).entities([NOTE] * 40)
        assert [*progress.track_items("x", [1, 2])] == [1, 2]
        with progress.track_bytes("x", 10**12) as done:
            done(1)
    registry.clear_cache()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "--type", "clincal"],
        ["list", "--where", "licence=mit"],
        ["list", "--where", "license"],
        ["list", "--limit", "0"],
        ["show"],
        ["show", " biobert"],
        ["register", "x", "--type", "generic", "--task", "nerr"],
        ["register", "x", "--type", "generic", "--path", "./nothing-there"],
        ["run", "TAGGER", "x", "--task", "embde"],
        ["run", "TAGGER", "x", "--device", "gpu"],
        ["run", "TAGGER", "x", "--dtype", "float23"],
        ["run", "TAGGER", "--file", "nothing-there"],
        ["run", "TAGGER", "x", "--file", "y"],
        ["run", "TAGGER"],
        ["plan", "TAGGER", "--device", "gpu"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(tagger: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with what was typed: one error on standard error, nothing on standard output."""
    done = command(monkeypatch, *(str(tagger) if word == "TAGGER" else word for word in arguments))
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.count("Error: ") == 1 and "Traceback" not in done.err and "Value error" not in done.err


@pytest.mark.parametrize(
    ("word", "ours"), [("search", "list"), ("rm", "unregister"), ("info", "show"), ("lst", "list")]
)
def test_words_of_other_tools_lead_to_ours(word: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that Ollama, pip or the Hub's program has is answered with the one that does it here."""
    done = command(monkeypatch, word, "x")
    assert done.code == 2 and f"No such command '{word}'. Did you mean '{ours}'?" in done.err


def test_an_error_of_no_kind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message may hold a text of the input, so its type and place are shown; MEDVLLM_DEBUG=1 shows the rest."""

    class Panic(BaseException):
        pass

    for raised in (RuntimeError(NOTE), Panic(NOTE), MemoryError(), RecursionError()):

        def fail(*_: object, error: BaseException = raised, **__: object) -> None:
            raise error

        monkeypatch.setattr(registry, "list_models", fail)
        done = command(monkeypatch, "list")
        assert done.code == 1 and f"Error: {type(raised).__name__} in test_streams.py, line" in done.err
        assert "Traceback" not in done.err and "Peña" not in done.err and "MEDVLLM_DEBUG=1" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", NOTE],
        ["run", NOTE],
        ["run", "TAGGER", f"--{NOTE}"],
        ["run", "TAGGER", f"-{NOTE}"],
        ["run", "TAGGER", "x", "--task", NOTE],
        ["run", "TAGGER", "x", f"--dtype={NOTE}"],
        ["run", "TAGGER", "x", "--device", NOTE],
        ["run", "TAGGER", "--file", NOTE],
        ["list", "--type", NOTE],
        ["list", "--limit", NOTE],
        ["list", "--where", f"{NOTE}=x"],
        [NOTE],
        ["alias", NOTE],
    ],
    ids=" ".join,
)
def test_a_note_in_the_wrong_place_is_not_echoed(
    tagger: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its beginning."""
    done = command(monkeypatch, *(str(tagger) if word == "TAGGER" else word for word in arguments))
    assert done.code in (1, 2) and "Error: " in done.err
    assert "Seen by" not in done.err and "Pe" not in done.err


def test_names_and_paths_are_shown() -> None:
    """What is short, or a path, is echoed: it tells where the slip is."""
    for argument in ("biobret-v1.2", "my model", "./folder of mine/with a long name"):
        assert without_notes(f"Model {argument!r} is not there.", [argument]) == f"Model {argument!r} is not there."


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"\xef\xbb\xbfaspirin\nfever\n", ["aspirin", "fever"]),
        (b"aspirin\r\nfever\r\n", ["aspirin", "fever"]),
        (
            "one\x0ctwo\u2028three\x85four\x0bfive\x1csix\nfever".encode(),
            ["one\x0ctwo\u2028three\x85four\x0bfive\x1csix", "fever"],
        ),
        (b"aspirin\n\nfever\n\n", ["aspirin", "", "fever", ""]),
        (b"a\rb\n", ["a\rb"]),
    ],
)
def test_the_lines_of_a_file_are_its_lines(
    tagger: Path, content: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A byte order mark is no text, and only a line feed ends a line, as `wc -l` counts."""
    file = tmp_path / "texts"
    file.write_bytes(content)
    expected = [tags.to_dict() for tags in ModelRunner(tagger).entities(texts)]
    for given, stdin in ((str(file), b""), ("-", content)):
        done = command(monkeypatch, "run", str(tagger), "--file", given, "--json", stdin=stdin)
        assert json.loads(done.out)["results"] == expected, done.err


def test_no_log_line_becomes_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where standard error is full."""
    with open("/dev/full", "w") as full:
        assert command(monkeypatch, "show", "nothing-such", stderr=full).code == 1
    with open("/dev/full", "w") as full:
        done = command(monkeypatch, "list", stdout=full)
    assert done.code == 1 and "No space left" in done.err
