"""Tables as Excel, pandas, R and other programs write them: no id and no row is lost or mixed in silence."""

from pathlib import Path

import pandas as pd
import pytest

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.corpus import open_corpus
from medvllm.corpora.rows import Row
from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner.corpus_run import CorpusRun
from medvllm.errors import RequestError
from tests.support import tiny

BOM = "\ufeff"
SECRET = "Zyxwvut Canary"


def read(file: Path, content: str | bytes, columns: Columns | None = None) -> list[tuple[object, object]]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_corpus(file, columns or Columns()) as corpus:
        return [(row.id, row.text) for row in corpus]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "sep=;\nid;text\n1;a, b\n", [("1", "a, b")]),
        ("a.csv", f"{BOM}SEP=|\r\n\r\nid|text\r\n1|a;b,c\r\n", [("1", "a;b,c")]),
        ("a.csv", '"sep=\t"\nid\ttext\n1\ta;b\n', [("1", "a;b")]),
        ("a.tsv", "sep=;\nid;text\n1;a\n", [("1", "a")]),
        ("a.csv", "sep=^\nid^text\n1^a|b\n", [("1", "a|b")]),
        ("a.csv", "id|text\n1|a;b,c\td\n", [("1", "a;b,c\td")]),
        ("a.csv", "id\ttext\n1\ta;b,c|d\n", [("1", "a;b,c|d")]),
        ("a.csv", 'text;id;"a,b,c,d"\nx, y;1;z\n', [("1", "x, y")]),
        ("a.csv", 'text|id|a,b,c\nx|1|"y\nz"\n', [("1", "x")]),
        ("a.csv", '"a,\n;b","id","text"\n"","1","x\n\ny"\n', [("1", "x\n\ny")]),
        ("a.psv", "id|text\n1|a\n", [("1", "a")]),
        ("a.tab", "id\ttext\n1\ta,b\n", [("1", "a,b")]),
        ("a.csv", f"{BOM}{BOM}id,text\n1,a\n", [("1", "a")]),
        ("a.csv", f"\u200b id\u00a0,{BOM}text\n1,a\n", [("1", "a")]),
        ("a.jsonl", f'{BOM}{BOM}{{"id": 1, "text": "a"}}\n', [(1, "a")]),
        ("a.json", f'{BOM}{BOM}[{{"ID": 1, "text": "a"}}, "b"]', [(1, "a"), (None, "b")]),
        ("a.txt", f"{BOM}{BOM}a\n", [(None, "a")]),
        ("a.csv", "ID,text\n007,a\n", [("007", "a")]),
        ("a.jsonl", '{"Id": 1, "text": "a"}\n{"id ": 2, "text": "b"}\n', [(1, "a"), (2, "b")]),
        ("a.csv", "text\n\na\n\n\nb\n\n", [(None, each) for each in ("", "a", "", "", "b")]),
        ("a.csv", "id,text\n\n1,a\n\n", [("1", "a")]),
        ("a.csv", "id,text\r\r\n1,a\r\r\n", [("1", "a")]),
    ],
)
def test_tables_of_many_kinds(tmp_path: Path, name: str, content: str, rows: list[tuple[object, object]]) -> None:
    """Separators that are stated or seen in the headings, byte order marks, ids in any case, blank lines."""
    assert read(tmp_path / name, content) == rows


@pytest.mark.parametrize(
    ("name", "content", "columns", "what"),
    [
        ("a.csv", f"id,ID,text\n1,2,{SECRET}\n", None, "2 columns .* the ids in .*: 'id', 'ID'.\nName it with"),
        ("a.csv", f"id,text,id\n1,{SECRET},2\n", None, "'id', 'id'.\nRename all but one"),
        ("a.csv", f"id,text,id\n1,{SECRET},2\n", Columns(id="id"), "There are 2 columns 'id'"),
        ("a.jsonl", f'{{"id": 1, "Id": 2, "text": "{SECRET}"}}\n', None, "2 columns that may hold the ids in line 1"),
        ("a.csv", f"text;id,text\n1;{SECRET},2\n", None, "can be separated by ',' or ';'.\nState .*: sep=,"),
        ("a.csv", f"sep=;\nid,text\n1,{SECRET}\n", None, "no column 'text'"),
        ("a.csv", f'"id","text"\n"1","007","{SECRET}"\n', None, "3 fields instead of 2 .*\nIf R .*: row.names = FALSE"),
        ("a.csv", f'id,text\n1,"say \\"{SECRET}\\""\n', None, "a quote in the middle of a field in line 2"),
        ("a.csv", f"id,text\n1,{SECRET}\0\n", None, "a NUL character in line 2"),
        ("a.json", f'["{SECRET}"]'.encode("utf-16-le"), None, "a NUL character in one of the bytes up to"),
        ("a.tsv", f"id\ttext\n1\t{SECRET}\n".encode("utf-16"), None, "is UTF-16, not text in UTF-8"),
        ("a.json", f'[{{"id": 1, "text": "{SECRET}"}}, {{"id": 2}}]', None, "no column 'text' in item 2"),
        ("a.json", f'[{{"id": 1, "text": "{SECRET}"}}, ["x"]]', None, "no object in item 2"),
        ("a.json", f'[{{"id": 1, "text": "{SECRET}"}}, null]', None, "no object in item 2"),
        ("a.json", f'[{{"id": 1, "text": "{SECRET}"}},]', None, "no valid JSON in item 2"),
        ("a.json", f'[{{"id": 1, "text": "{SECRET}"}}', None, "no valid JSON in item 1"),
        ("a.json", f'[{{"id": 1, "id": 2, "text": "{SECRET}"}}]', None, "no valid JSON in item 1"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(
    tmp_path: Path, name: str, content: str | bytes, columns: Columns | None, what: str
) -> None:
    """By its place, without its text."""
    with pytest.raises(RequestError, match=what) as raised:
        read(tmp_path / name, content, columns)
    assert SECRET not in str(raised.value) and raised.value.__cause__ is raised.value.__context__ is None


def test_what_pandas_writes_is_read_again(tmp_path: Path) -> None:
    """With its index, with any separator, with quotes and line breaks; records of JSON."""
    rows = [("007", 'say "ah",\nor;|\tnot'), ("8", ""), ("é", "\r\n")]
    table = pd.DataFrame(rows, columns=["ID", "text"])
    for separator in ",;|\t":
        table.to_csv(tmp_path / "a.csv", sep=separator)
        assert read(tmp_path / "a.csv", (tmp_path / "a.csv").read_bytes()) == rows
    table.to_json(tmp_path / "a.json", orient="records")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.json", "a.jsonl"):
        assert read(tmp_path / name, (tmp_path / name).read_bytes()) == rows
    table.to_json(tmp_path / "a.json")
    with pytest.raises(RequestError, match="is no list"):
        read(tmp_path / "a.json", (tmp_path / "a.json").read_bytes())


def test_an_id_of_several_rows_is_a_warning(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, by its place, also from chunk to chunk; a redaction takes it for the name of a document."""
    tiny.bert_encoder(tmp_path / "m")
    registry.register("m", "clinical", model_path=str(tmp_path / "m"))
    rows = [Row("fever" + " x" * 100_000, "line 2", SECRET), *(Row("pain", f"line {n}", SECRET) for n in (3, 4))]
    rows += [Row("x", "line 5"), Row("x", "line 6")]
    assert sum(len(each.given) for each in CorpusRun("m", rows, registry=registry)) == 5
    [record] = [each for each in caplog.records if "id" in each.message]
    assert "The id in line 3 is that of an earlier row" in record.message and SECRET not in record.message
    caplog.clear()
    list(CorpusRun("m", [Row("x", "line 2", 7), Row("x", "line 3", "8"), Row("x", "line 4")], registry=registry))
    assert not caplog.records
    list(CorpusRun("m", [Row("x", "line 2", 7), Row("x", "line 3", "7")], registry=registry))
    assert "The id in line 3" in caplog.text
