"""The command line, as a user types it: in processes of their own, in a pipe and on a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from medvllm import __version__
from tests.support import tiny, warm
from tests.support.console import Outcome, command
from tests.support.loopback import LoopbackHub


def _medvllm(*arguments: str, stdin: str = "", **environment: str) -> Outcome:
    """Run a command in this process: it has imported torch already."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
            if hasattr(constants, name.replace("HF_ENDPOINT", "ENDPOINT")):  # read at its import
                patch.setattr(constants, name.replace("HF_ENDPOINT", "ENDPOINT"), value)
        return command(patch, *arguments, stdin=stdin.encode())


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.medvllm(*arguments, **environment)


def _on_a_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command prints on a terminal of 100 columns."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "medvllm.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm-256color", **environment},
    )
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(parent)
        process.wait(60)
    return shown.decode()


@pytest.fixture(scope="module")
def mlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked language model."""
    return tiny.bert_masked_lm(tmp_path_factory.mktemp("cli") / "mlm")


def test_version() -> None:
    """One line."""
    assert _medvllm("--version").out == f"medvllm {__version__}\n"


def test_list_in_a_pipe_is_lines_with_tabs() -> None:
    """For cut, awk and grep: no heading, no colour."""
    out = _medvllm("list").out
    assert all(line.count("\t") == 4 for line in out.splitlines())
    assert out.splitlines() == sorted(out.splitlines())
    assert "biobert-base-cased-v1.2\tBIOMEDICAL\tfill-mask, embed\t-\t-" in out.splitlines()


def test_list_filters() -> None:
    """Pattern, type in any case, task, tags that must all be there, and any fact."""

    def names(*arguments: str) -> list[str]:
        return [row["name"] for row in json.loads(_medvllm("list", "--json", *arguments).out)]

    assert names("biobert*") == ["biobert-base-cased-v1.2"]
    assert names("--type", "CLINICAL", "emily*Clin*") == ["emilyalsentzer/Bio_ClinicalBERT"]
    assert names("--tag", "bert", "--tag", "reranker") == ["ncbi/MedCPT-Cross-Encoder"]
    assert "d4data/biomedical-ner-all" in names("--task", "ner")
    assert names("--where", "gated=true") == ["epfl-llm/meditron-7b", "google/medgemma-27b-text-it"]
    assert names("--where", "pooling=cls", "--where", "license=apache*") == [
        "cambridgeltl/SapBERT-from-PubMedBERT-fulltext"
    ]
    assert "yikuan8/Clinical-Longformer" in names("--where", "license=")
    assert _medvllm("list", "--where", "licence=x").code == 2
    wrong = [_medvllm("list", "--where", text) for text in ("license", "task=ner")]
    assert [run.code for run in wrong] == [2, 2] and "--task ner" in wrong[1].err


def test_a_table_on_a_terminal_and_no_colour_when_asked() -> None:
    """Headings; escape sequences only without NO_COLOR."""
    coloured, plain = _on_a_terminal("list"), _on_a_terminal("list", NO_COLOR="1")
    assert "NAME" in coloured and "SIZE" in coloured and "\t" not in coloured
    assert "\x1b[" in coloured
    assert "\x1b[3" not in plain and "NAME" in plain


def test_show() -> None:
    """Facts with their provenance; JSON with every key."""
    out = _medvllm("show", "biobert-base-cased-v1.2").out
    assert "do_lower_case\tFalse\tseen: cased" in out
    facts = json.loads(_medvllm("show", "dmis-lab/biobert-base-cased-v1.2", "--json").out)
    assert facts["name"] == "biobert-base-cased-v1.2"
    assert facts["revision"] == "67c9c25b46986521ca33df05d8540da1210b3256"
    assert facts["strip_accents"] is False and facts["label_scheme"] is None


def test_an_unknown_name_is_one_clear_error() -> None:
    """On stderr, exit code 1; the traceback only with MEDVLLM_DEBUG."""
    run = _medvllm("show", "biobret-v1.2")
    assert (run.code, run.out) == (1, "")
    assert run.err == (
        "Error: Model 'biobret-v1.2' is not registered. Did you mean: 'biobert-base-cased-v1.2'?\n"
        "List them with: medvllm list\n"
    )
    assert "Traceback" in _process("show", "biobret-v1.2", MEDVLLM_DEBUG="1").stderr


def test_run_embed(mlm: Path, tmp_path: Path) -> None:
    """Texts as arguments, on standard input, or in a file; the same vectors, and no text in the output."""
    by_argument = _medvllm("run", str(mlm), "chest pain", "fever", "--task", "embed", "--json")
    result = json.loads(by_argument.out)
    assert result["task"] == "embed" and result["receipt"]["origin"] == "direct"
    assert [len(r["vector"]) for r in result["results"]] == [32, 32]
    (tmp_path / "texts").write_text("chest pain\nfever\n")
    for run in (
        _medvllm("run", str(mlm), "--task", "embed", "--json", stdin="chest pain\nfever\n"),
        _medvllm("run", str(mlm), "--task", "embed", "--json", "--file", str(tmp_path / "texts")),
        _medvllm("run", str(mlm), "--task", "embed", "--json", "--file", "-", stdin="chest pain\nfever\n"),
    ):
        assert json.loads(run.out)["results"] == result["results"]
    assert "fever" not in by_argument.out + by_argument.err
    with_a_gap = _medvllm("run", str(mlm), "--task", "embed", "-", stdin="chest pain\n\nfever\n").out
    assert [line.split("\t")[0] for line in with_a_gap.splitlines()] == ["1", "2", "3"]
    lines = _medvllm("run", str(mlm), "chest pain", "--task", "embed").out.splitlines()
    assert len(lines) == 1 and len(lines[0].split("\t")[3].split(" ")) == 32


def test_run_ner_with_a_receipt(tmp_path: Path) -> None:
    """One line a span; the receipt in a file of its own, the same as in the JSON."""
    folder, text = str(tiny.bert_token_classifier(tmp_path / "t", ["O", "B-X", "I-X"], seed=2)), "chest pain"
    receipt = tmp_path / "receipt.json"
    table = _medvllm("run", folder, text, "--receipt", str(receipt))
    rows = [line.split("\t") for line in table.out.splitlines()]
    assert rows and all(text[int(row[1]) : int(row[2])] == row[5] and row[3] == "X" for row in rows)
    result = json.loads(_medvllm("run", folder, text, "--json").out)
    assert result["task"] == "ner" and len(result["results"][0]["spans"]) == len(rows)
    assert result["receipt"] == json.loads(receipt.read_text()) and text not in receipt.read_text()
    assert list(tmp_path.glob(".receipt*")) == []


def test_run_fill_mask(mlm: Path) -> None:
    """Rows of text, gap, token and score."""
    rows = [
        line.split("\t") for line in _medvllm("run", str(mlm), "chest [MASK]", "--task", "fill-mask").out.splitlines()
    ]
    assert [row[:2] for row in rows] == [["1", "1"]] * 5
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    gaps = json.loads(_medvllm("run", str(mlm), "chest [MASK]", "--task", "fill-mask", "--json").out)["results"][0][
        "gaps"
    ]
    assert gaps[0][0]["token"] == rows[0][2]


def test_run_errors(mlm: Path, tmp_path: Path) -> None:
    """No text, two sources of texts, a file that is not there, a task that is none."""
    assert _medvllm("run", str(mlm)).code == 2
    assert _medvllm("run", str(mlm), "x", "--file", "y").code == 2
    absent = _medvllm("run", str(mlm), "--file", str(tmp_path / "absent"))
    assert absent.code == 2 and "No such file or directory" in absent.err
    (tmp_path / "latin").write_bytes(b"fever\n\xe9\n")
    assert "The text is not UTF-8: byte 1 cannot be read in line 2 of " in (
        _medvllm("run", str(mlm), "--file", str(tmp_path / "latin")).err
    )
    assert "Did you mean: 'embed'" in _medvllm("run", str(mlm), "x", "--task", "embedd").err
    assert "Traceback" not in absent.err


def test_output_that_cannot_be_written_is_an_error(mlm: Path) -> None:
    """A full disk behind a redirection: one line, not a traceback."""
    command = [sys.executable, "-u", "-m", "medvllm.cli", "list"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert run.returncode == 1 and "No space left" in run.stderr and "Traceback" not in run.stderr


def test_pull_then_run_without_a_hub(session_hub: LoopbackHub, mlm: Path, tmp_path: Path) -> None:
    """What an air-gapped site does: fetch where there is a network, run where there is none."""
    session_hub.add("acme/pulled", mlm)
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    fetched = _medvllm("pull", "acme/pulled", **cache)
    assert re.match(r"Fetched 'acme/pulled': 4 files, 111 KB, in [\d.]+ s, to ", fetched.out), fetched.err
    run = _medvllm("run", "acme/pulled", "fever", "--task", "embed", HF_HUB_OFFLINE="1", **cache)
    assert run.code == 0 and run.out, run.err
