"""Corpora: every text is read as it is written, and a file that cannot be read so is refused."""

import csv
import errno
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.corpus import corpus_of, open_corpus, open_rows
from medvllm.corpora.reading.json_rows import read_json_list
from medvllm.corpora.reading.parquet_rows import read_parquet
from medvllm.corpora.reading.urls import shown_name
from medvllm.corpora.rows import BadRow, Row, split_into_chunks
from medvllm.corpora.writing.writers import WRITERS, choose_writer, open_writer
from medvllm.errors import MissingDependencyError, OutputError, RequestError
from tests.support.scripted import Reply, Scripted, Sent, scripted

SECRET = "Zyxwvut Canary"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
ROWS = st.lists(st.tuples(TEXT.filter(bool), TEXT), min_size=1, max_size=5)
EXAMPLES = settings(max_examples=40, deadline=None)
FEW = settings(max_examples=10, deadline=None)  # each writes several files to the disk


def read(file: Path, columns: Columns | None = None, format: str | None = None) -> list[Row]:
    with open_corpus(file, columns or Columns(), format) as corpus:
        return list(corpus)


def pairs(rows: list[Row]) -> list[tuple[Any, Any]]:
    return [(row.id, row.text) for row in rows]


def refusal(file: Path, columns: Columns | None = None, format: str | None = None) -> str:
    """The message of the error; the text is in none of the errors that it comes from."""
    with pytest.raises(RequestError) as raised:
        read(file, columns, format)
    error: BaseException | None = raised.value
    while error is not None:
        assert SECRET not in repr(vars(error)) + repr(error.args) + str(error)
        error = error.__cause__ or error.__context__
    return str(raised.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that are written over."""
    return tmp_path_factory.mktemp("corpora")


@FEW
@given(rows=ROWS)
def test_ids_and_texts_of_tables_are_read_as_they_were_written(folder: Path, rows: list[tuple[str, str]]) -> None:
    """CSV of either separator, tab-separated values, JSON, JSON lines and Parquet, with and without a BOM."""
    records = [{"note": "x", "id": id, "text": text} for id, text in rows]
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        for encoding in ("utf-8", "utf-8-sig"):
            with (folder / name).open("w", encoding=encoding, newline="") as stream:
                table = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
                table.writerows([["id", "text", "n"], *([id, text, "1"] for id, text in rows)])
            assert pairs(read(folder / name)) == rows
    (folder / "d.json").write_text(json.dumps(records, indent=1))
    (folder / "e.jsonl").write_text("\n\n".join(json.dumps(each, ensure_ascii=False) for each in records))
    parquet.write_table(pa.Table.from_pylist(records), folder / "f.parquet", row_group_size=2)
    for name in ("d.json", "e.jsonl", "f.parquet"):
        assert pairs(read(folder / name)) == rows


@EXAMPLES
@given(texts=st.lists(TEXT, min_size=1, max_size=5), ends=st.sampled_from(["\n", "\r\n"]))
def test_lines_and_notes_are_read_as_they_were_written(folder: Path, texts: list[str], ends: str) -> None:
    """A note keeps its line ends; of a text of lines, only line feeds end one."""
    (folder / "lines").write_bytes("".join(text + ends for text in texts).encode())
    expected = [line.removesuffix("\r") for text in texts for line in (text + ends)[:-1].split("\n")]
    if any(map(str.strip, texts)):
        rows = read(folder / "lines")
        assert [row.text for row in rows] == expected
        assert rows[-1].place == f"line {len(expected)} of {str(folder / 'lines')!r}"
    for number, text in enumerate(texts):
        (folder / "notes" / str(number)).mkdir(parents=True, exist_ok=True)
        (folder / "notes" / str(number) / "n.txt").write_bytes(text.encode())
    found = pairs(read(folder / "notes"))[: len(texts)]
    assert found == [(f"{number}/n.txt", text.lstrip("\ufeff")) for number, text in enumerate(texts)]


@EXAMPLES
@given(data=st.binary(max_size=60), format=st.sampled_from(["lines", "jsonl", "json", "csv", "tsv", "parquet"]))
def test_any_bytes_are_rows_or_an_error_of_ours(folder: Path, data: bytes, format: str) -> None:
    """No error of a library, whatever the file."""
    for content in (data, b"text\n" + data, b'["' + data, b'{"text": "' + data, b"PAR1" + data + b"PAR1"):
        (folder / "any").write_bytes(content)
        with suppress(RequestError):
            assert all(isinstance(row.text, (str, list)) for row in read(folder / "any", format=format))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a", SECRET.encode("utf-16"), "is UTF-16, not text in UTF-8.\nConvert it: iconv -f UTF-16"),
        ("a", f"x\n{SECRET}".encode("utf-16-le"), "NUL character in line 1"),
        ("a", f"fever\n{SECRET} é\n".encode("latin-1"), "byte 16 cannot be read in line 2"),
        ("a", b"\x1f\x8b\x08xx", "is compressed with gzip"),
        ("a", b"PAR1xxPAR1", "is Parquet"),
        ("a", b"\n \n", "contains no text"),
        ("a", b"\xef\xbb\xbf", "contains no text"),
        ("a.csv", b"", "contains no text"),
        ("a.csv", b"text\n", "contains no text"),
        ("a.csv", f"a,text\n1,{SECRET},x\n".encode(), "There are 3 fields instead of 2 in line 2"),
        ("a.csv", f'a,text\n1,"{SECRET}\nx\n'.encode(), "a quote that is not closed in line 2"),
        ("a.csv", f'a,text\n1,"{SECRET}"x\n'.encode(), "a quote in the middle of a field in line 2"),
        ("a.csv", f"a,text\n1,{SECRET}\rx\n".encode(), "a carriage return that is in no quotes in line 2"),
        ("a.csv", f"a,text\r1,{SECRET}\r".encode(), "a carriage return that is in no quotes in line 1"),
        ("a.csv", f"text,text\n1,{SECRET}\n".encode(), "There are 2 columns 'text'"),
        ("a.csv", f"id,TEXT\n1,{SECRET}\n".encode(), "'TEXT'?\nIts columns: id, TEXT\nName it with: --text"),
        ("a.csv", f"1,{SECRET} was seen today by the doctor\n".encode(), "It has 2 columns."),
        ("a.csv", f"12345,{SECRET},1956-02-03,fever\n".encode(), "It has 4 columns. Without headings, "),
        ("a.csv", f"A1,{SECRET.split()[0]},2.5\n".encode(), "It has 3 columns. Without headings, "),
        ("a.csv", f"Patient ID,TEXT\n1,{SECRET}\n".encode(), "'TEXT'?\nIt has 2 columns."),
        ("a.csv", f",Note,_x\n0,{SECRET},1\n".encode(), "Its columns: '', Note, _x\n"),
        ("a.jsonl", f'{{"{SECRET}": 1}}\n'.encode(), "It has one column. "),
        ("a.jsonl", f'"x"\n{{"text": "{SECRET}"\n'.encode(), "no valid JSON in line 2"),
        ("a.jsonl", f'{{"text": "x", "text": "{SECRET}"}}\n'.encode(), "no valid JSON in line 1"),
        ("a.jsonl", f'{{"text": null, "t": "{SECRET}"}}\n'.encode(), "Column 'text' is null in line 1"),
        ("a.jsonl", f'{{"text": {{"a": "{SECRET}"}}}}\n'.encode(), "holds an object, not a text in line 1"),
        ("a.jsonl", f'{{"note": "{SECRET}"}}\n'.encode(), "There is no column 'text' in line 1"),
        ("a.jsonl", f'{{"text": "x", "id": ["{SECRET}"]}}\n'.encode(), "Column 'id' holds a list in line 1"),
        ("a.jsonl", f'{{"text": "{SECRET}", "id": "\\ud800"}}\n'.encode(), "not valid Unicode in line 1"),
        ("a.jsonl", f'{{"text": "{SECRET}", "id": 1e999}}\n'.encode(), "holds NaN or infinity in line 1"),
        ("a.json", f'{{"text": "{SECRET}"}}'.encode(), "is no list.\nWrite it as: "),
        ("a.json", f'["x", "{SECRET}" "y"]'.encode(), "no valid JSON in item 2"),
        ("a.json", f'["x", NaN, "{SECRET}"]'.encode(), "no valid JSON in item 2"),
        ("a.json", f'["x"] "{SECRET}"'.encode(), "what follows the list"),
        ("a.json", f'["{SECRET} \xe9"]'.encode("latin-1"), "is not UTF-8"),
        ("a.parquet", SECRET.encode(), "is no Parquet file"),
        ("a.parquet", f"PAR1{SECRET}PAR1".encode(), "it is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_place(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    """With the number of the line, and never with its text."""
    (tmp_path / name).write_bytes(content)
    assert what in refusal(tmp_path / name)


def test_parquet_columns_of_every_kind(tmp_path: Path) -> None:
    """Texts of any width; ids as they are; nulls, numbers and structs in the place of texts are refused by row."""
    texts = ["fever", "cough"]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        ids = pa.array([1, None], pa.int64())
        parquet.write_table(pa.table({"id": ids, "text": pa.array(texts).cast(kind)}), tmp_path / "a.parquet")
        assert pairs(read(tmp_path / "a.parquet")) == [(1, "fever"), (None, "cough")]
    for wrong, what in ((None, "is null"), (3, "holds a number"), ({"a": SECRET}, "holds an object")):
        column = pa.array([wrong] if wrong else ["x", None])
        parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert what in (said := refusal(tmp_path / "a.parquet")) and f"row {1 if wrong else 2} of" in said
    parquet.write_table(pa.table({"id": pa.array([1.0, float("nan")]), "text": ["x", SECRET]}), tmp_path / "a.parquet")
    assert "Column 'id' holds NaN or infinity in row 2" in refusal(tmp_path / "a.parquet")
    texts = pa.table({"id": pa.array([b"a1", "é".encode()]), "text": pa.array([b"fever", b"cough"], pa.binary_view())})
    parquet.write_table(texts, tmp_path / "a.parquet")
    assert pairs(read(tmp_path / "a.parquet")) == [("a1", "fever"), ("é", "cough")]
    for name in ("id", "text"):
        wrong = texts.set_column(texts.schema.get_field_index(name), name, pa.array([b"x", SECRET.encode() + b"\xff"]))
        parquet.write_table(wrong, tmp_path / "a.parquet")
        assert f"Column {name!r} holds bytes that are not UTF-8 in row 2" in refusal(tmp_path / "a.parquet")
    words = pa.table({"text": pa.array([["Dr", "Smith"]]), "when": pa.array([date(2019, 5, 3)])})
    parquet.write_table(words, tmp_path / "a.parquet")
    assert pairs(read(tmp_path / "a.parquet", Columns(id="when"))) == [("2019-05-03", ["Dr", "Smith"])]
    late = pa.table({"text": ["x", SECRET], "id": pa.array([0, 10**12], pa.timestamp("s"))})
    parquet.write_table(late, tmp_path / "a.parquet")
    assert "Column 'id' holds a timestamp[ms] that Python cannot hold in row 2" in refusal(tmp_path / "a.parquet")


def test_other_columns_pairs_and_further_columns(tmp_path: Path) -> None:
    """Named columns; two of them for pairs; a column of JSON, also in CSV."""
    file = tmp_path / "a.csv"
    file.write_text('key,title,abstract,spans\n007,T,A,"[[0, 1]]"\n')
    columns = Columns(("title", "abstract"), "key", ("spans",))
    assert [(row.id, row.text, row.extra) for row in read(file, columns)] == [("007", ("T", "A"), {"spans": [[0, 1]]})]
    assert "no column 'di' in" in refusal(file, Columns(("title",), "di"))
    assert "no column 'text'" in refusal(file, Columns(extra=("spans",)))
    usual = Columns(usual=("title", "abstract"))
    assert [row.text for row in read(file, usual)] == [("T", "A")]
    (tmp_path / "lines").write_text("T\tA\nT\n")
    assert "there are 0 tabs in line 2" in refusal(tmp_path / "lines", usual)
    assert [row.text for row in corpus_of(["T\tA"], usual)] == [("T", "A")]
    assert "has no column 'title'.\nUse a .jsonl" in refusal(tmp_path / "lines", Columns(("title",)))
    file.write_text(f'text,spans\nx,"{SECRET}"\n')
    assert "no valid JSON in column 'spans' in line 2" in refusal(file, Columns(extra=("spans",)))


def test_a_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    """In Parquet and in a saved dataset, in columns of any kind."""
    broken = SECRET.encode() + b"\xe9"
    texts = pa.array([b"fever", broken, b"cough", b"pain"]).cast(pa.string(), safe=False)
    ids = pa.array([b"a", b"b", broken, b"d"]).cast(pa.string(), safe=False)
    words = pa.ListArray.from_arrays([0, 1, 2, 3, 4], ids)
    kinds = {"text": texts, "id": ids, "spans": pa.array([[[0, 1]]] * 4)}
    tables = {
        "text": kinds,
        "large": kinds | {"text": texts.cast(pa.large_string(), safe=False)},
        "named": kinds | {"text": texts.dictionary_encode()},
        "words": kinds | {"text": words, "id": pa.array([1, 2, 3, 4])},
        "further": kinds | {"spans": words, "id": ids.fill_null("")},
    }
    for name, table in tables.items():
        parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        with open_rows(tmp_path / f"{name}.parquet", Columns(extra=("spans",))) as found:
            rows = list(found.rows)
        bad = [row for row in rows if isinstance(row, BadRow)]
        expected = [3] if name == "words" else [2, 3]
        assert [row.place.split(" of ")[0] for row in bad] == [f"row {number}" for number in expected]
        assert all("holds bytes that are not UTF-8" in str(row.error) for row in bad)
        assert next(row.text for row in rows if isinstance(row, Row)) in ("fever", ["a"])
    assert SECRET not in repr(bad)
    datasets.Dataset(pa.table(kinds)).save_to_disk(tmp_path / "saved")
    with open_rows(tmp_path / "saved", Columns()) as found:
        assert [isinstance(row, BadRow) for row in found.rows] == [False, True, True, False]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Scripted]:
    """A server of the files in a folder, which also sends parts of them; a query "broken" breaks them off."""

    def answer(sent: Sent) -> Reply:
        name, _, query = sent.path[1:].partition("?")
        content = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        if content is None:
            return Reply(404)
        if "range" not in sent.headers:
            return Reply(200, content)
        first, last = map(int, re.findall(r"\d+", sent.headers["range"]))
        part = content[first : last + 1]
        return Reply(206, part[: len(part) // 2] if query == "broken" else part, length=len(part))

    with scripted(answer) as server:
        yield server


def test_files_behind_web_addresses_are_read(web: Scripted, tmp_path: Path) -> None:
    """In every format, which the path says, and not the query; without the path, --format must say it."""
    records = [{"id": f"n{number}", "text": f"fever {number}"} for number in range(300)]
    expected = [(each["id"], each["text"]) for each in records]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{id},{text}\n" for id, text in expected))
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for _, text in expected))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "export").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for name, format in (
        ("a.jsonl", None),
        ("a.json", None),
        ("a.csv", None),
        ("a.parquet", None),
        ("export", "jsonl"),
    ):
        with open_rows(f"{web.url}/{name}?signature=a/b.csv", Columns(), format) as found:
            assert [(row.id, row.text) for row in found.rows if isinstance(row, Row)] == expected
    with open_rows(f"{web.url}/a.txt", Columns()) as found:
        assert [row.text for row in found.rows if isinstance(row, Row)] == [text for _, text in expected]
    for name in ("export", "export?name=a.jsonl", "a.php"):
        what = "does not say its format.*\nSay what it is: --format lines, jsonl"
        with pytest.raises(RequestError, match=what), open_rows(f"{web.url}/{name}", Columns()):
            pass
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.csv", "a.csv")
    for url in (f"zip://a.csv::{web.url}/a.zip?x", f"file://{tmp_path}/a.csv"):
        with open_rows(url, Columns()) as found:
            assert len([*found.rows]) == 300


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_what_a_url_breaks_off_is_an_error_of_ours(web: Scripted, tmp_path: Path, name: str) -> None:
    """It names the URL without its password and query, and says that it could not be read: it is not damaged."""
    write(tmp_path / "a.parquet", Found([*range(50)], [SECRET] * 50))
    for other in ("a.jsonl", "a.json", "a.csv"):
        (tmp_path / other).write_bytes(b'[{"text": "x"}, {"text":\n' * 20)
    url = f"{web.url.replace('://', f'://me:{SECRET[:7]}@')}/{name}?broken"
    with pytest.raises(RequestError) as raised, open_rows(url, Columns()) as found:
        list(found.rows)
    assert f"Texts cannot be read from '{web.url}/{name}': ClientPayloadError." in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.csv", "https://host/a.csv"),
        ("https://me:p@ss@host:1/a@b.csv?X-Amz-Signature=x#y", "https://host:1/a@b.csv"),
        ("https://me:p::?q@host/a.csv", "https://host/a.csv"),
        ("https://token@[::1]:80/a.csv?a=b", "https://[::1]:80/a.csv"),
        ("zip://a.csv::https://me:p@host/a.zip?sig=x::y", "zip://a.csv::https://host/a.zip"),
        ("zip://a.csv?x=y::https://host/a.zip", "zip://a.csv::https://host/a.zip"),
        ("zip://a#b.csv::https://host/a.zip#b", "zip://a#b.csv::https://host/a.zip"),
        ("ABFS://container@account.net/a.csv?sv=1&sig=x/y", "ABFS://container@account.net/a.csv"),
        ("wasbs://container:p:p@ss@account.net/a.csv", "wasbs://container@account.net/a.csv"),
        ("s3://user:p@bucket/a#1.csv?&versionId=x", "s3://bucket/a#1.csv"),
        ("s3://bucket/note?/year=20??/*.csv?id=x", "s3://bucket/note?/year=20??/*.csv"),
        ("notes?#me:p@host.csv", "notes?#me:p@host.csv"),
    ],
)
def test_urls_are_shown_without_passwords_and_signatures(url: str, shown: str) -> None:
    assert shown_name(url) == shown


def test_a_disk_that_fails_is_no_damaged_file(tmp_path: Path) -> None:
    """Its error is named, also if Arrow reads the file, at its beginning or later."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if has_failed:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    (tmp_path / "mem.parquet").symlink_to("/proc/self/mem")  # the address 0 of a process cannot be read
    assert refusal(tmp_path / "mem.parquet").endswith("mem.parquet': Input/output error.")
    parquet.write_table(pa.table({"text": [f"{number}" for number in range(1000)]}), tmp_path / "a.parquet")
    for has_failed in (False, True):
        stream = Failing((tmp_path / "a.parquet").read_bytes())
        with pytest.raises(OSError, match="Input/output"):
            rows = read_parquet(stream, "x", Columns())
            has_failed = True
            list(rows)


def test_a_folder_is_its_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the order of their names, without hidden ones; other files are named in a warning, and nothing is an error."""
    for name in ("b.txt", "a/z.TXT", "a/b.txt", ".hidden.txt", ".git/x.txt", "c.md"):
        (tmp_path / "n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "n" / name).write_text(name)
    (tmp_path / "n" / "l.txt").symlink_to(tmp_path / "n" / "b.txt")
    names = ["a/b.txt", "a/z.TXT", "b.txt", "l.txt"]
    assert [row.id for row in read(tmp_path / "n")] == names and caplog.text.count("left out: 1.") == 1
    (tmp_path / "n" / "b.txt").write_bytes(SECRET.encode() + b"\xff")
    assert f"byte 15 cannot be read in file {str(tmp_path / 'n' / 'b.txt')!r}" in refusal(tmp_path / "n")
    (tmp_path / "n" / "b.txt").unlink()
    assert f"file {str(tmp_path / 'n' / 'l.txt')!r}: No such file" in refusal(tmp_path / "n")
    (tmp_path / "empty").mkdir()
    assert "There is no .txt file in folder" in refusal(tmp_path / "empty")


def test_a_saved_dataset_is_its_rows(tmp_path: Path) -> None:
    """In their order, over several files and batches, whatever format and other columns it was saved with."""
    texts = [f"note {number}" for number in range(600)]
    made = datasets.Dataset.from_dict({"key": range(600), "note": texts, "vector": [[0.5]] * 600}).with_format("numpy")
    made.save_to_disk(tmp_path / "a", num_shards=3)
    columns = Columns(("note",), "key")
    with open_corpus(tmp_path / "a", columns) as corpus:
        assert corpus.total == 600 and pairs(list(corpus)) == [*enumerate(texts)]
    chosen = made.select([5, 3, 5]).rename_columns({"key": "ID", "note": "text"})
    datasets.DatasetDict({"train": chosen}).save_to_disk(tmp_path / "b")
    assert pairs(read(tmp_path / "b")) == [(5, "note 5"), (3, "note 3"), (5, "note 5")]
    assert pairs(read(tmp_path / "b" / "train", Columns(("text",), "ID"))) == pairs(read(tmp_path / "b"))
    assert "no column 'text'" in refusal(tmp_path / "a")
    assert "no column 'kye'" in refusal(tmp_path / "b", Columns(id="kye"))
    datasets.Dataset.from_dict({"text": ["x", None]}).save_to_disk(tmp_path / "c")
    assert "Column 'text' is null in row 2 of" in refusal(tmp_path / "c")


def test_saved_datasets_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several splits, a list of indices that the library would ignore, damaged files, and no library."""
    made = datasets.Dataset.from_dict({"text": [SECRET, "fever"]})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "a")
    said = refusal(tmp_path / "a")
    assert "has 2 splits: 'train', 'test'" in said and repr(str(tmp_path / "a" / "train")) in said
    train = tmp_path / "a" / "train"
    state = json.loads((train / "state.json").read_text())
    (train / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "flatten_indices()" in refusal(train)
    (train / "state.json").write_text("{")
    assert "it is damaged" in refusal(train)
    (train / "state.json").write_text(json.dumps(state))
    data = train / state["_data_files"][0]["filename"]
    data.write_bytes(data.read_bytes()[:-8])  # what Arrow reads without an error, as if nothing were missing
    assert "it is damaged" in refusal(train)
    data.write_bytes(data.read_bytes()[:-40])
    assert "cannot be read with datasets" in refusal(train)
    (tmp_path / "a" / "dataset_dict.json").write_text('{"splits": []}')
    assert "has no split" in refusal(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        read(tmp_path / "a" / "test")


def test_a_list_of_json_is_read_in_parts(folder: Path) -> None:
    """Items that stand across the borders of the parts are whole; only a little is read before the first item."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(1 + self.tell() % 3)

    def good(stream: io.BytesIO) -> Iterator[Row]:
        return (row for row in read_json_list(stream, "x", Columns()) if isinstance(row, Row))

    records = [{"id": number, "text": f"é\n“{number}”", "x": [1, {"y": None}, -2.5e3]} for number in range(20)]
    content = json.dumps(records, ensure_ascii=False, indent=1).encode()
    assert [(row.id, row.text) for row in good(Slow(content))] == [(r["id"], r["text"]) for r in records]
    stream = io.BytesIO(b'["first", ' + b'"another", ' * 1_000_000 + b'"last"]')
    assert next(good(stream)).text == "first" and stream.tell() < 2_000_000
    assert list(read_json_list(io.BytesIO(b" [ ] "), "x", Columns())) == []


def test_chunks_hold_some_characters() -> None:
    """In order, and a text that is longer is alone."""
    rows = [Row("x" * length, "") for length in (3, 3, 3, 20, 1)]
    assert [[len(row.text) for row in chunk] for chunk in split_into_chunks(rows, 6)] == [[3, 3], [3], [20], [1]]
    assert [len(chunk) for chunk in split_into_chunks([Row("", "")] * 4_100)] == [2_000, 2_000, 100]


class Found:
    """The answers for a chunk, as a task gives them."""

    task = "redact"
    columns = ("id", "start", "score", "span")

    def __init__(self, ids: list[Any], texts: list[str]) -> None:
        self.ids, self.given = ids, texts

    def rows(self) -> Iterator[tuple[Any, ...]]:
        for id, text in zip(self.ids, self.given, strict=True):
            yield id, 1, 0.5, text

    def records(self) -> Iterator[dict[str, Any]]:
        for id, text in zip(self.ids, self.given, strict=True):
            yield {"id": id, "text": text}

    def texts(self) -> list[str]:
        return self.given

    def vectors(self) -> "np.ndarray[Any, np.dtype[np.float32]]":
        return np.arange(len(self.ids) * 3, dtype=np.float32).reshape(-1, 3)


def write(file: Path, *chunks: Found) -> None:
    with open_writer(file) as writer:
        for chunk in chunks:
            writer.write(chunk)
        writer.finish({"format": 1})


@FEW
@given(rows=ROWS, cut=st.integers(0, 5))
def test_what_is_written_is_read_again(folder: Path, rows: list[tuple[str, str]], cut: int) -> None:
    """In one chunk or two, also empty ones: ids and texts in order, numbers as numbers."""
    ids, texts = [id for id, _ in rows], [text for _, text in rows]
    for ending in (".csv", ".parquet", ".jsonl", ".json", ".npy"):
        write(folder / f"out{ending}", Found(ids[:cut], texts[:cut]), Found(ids[cut:], texts[cut:]))
    for name in ("out.csv", "out.parquet"):
        assert pairs(read(folder / name, Columns(("span",)))) == rows
    assert pairs(read(folder / "out.jsonl")) == rows
    whole = json.loads((folder / "out.json").read_text())
    assert whole == {"task": "redact", "results": [{"id": i, "text": t} for i, t in rows], "receipt": {"format": 1}}
    types = [str(field.type) for field in parquet.read_schema(folder / "out.parquet")]
    assert types == ["string", "int64", "double", "string"]
    vectors = np.load(folder / "out.npy")
    assert vectors.shape == (len(rows), 3) and vectors.dtype == np.float32


def test_numbers_stay_numbers_and_mixed_ids_are_texts(tmp_path: Path) -> None:
    """What Parquet cannot hold together is refused, without the value."""
    write(tmp_path / "a.parquet", Found([1, None], ["a", "b"]), Found([3], ["c"]))
    assert parquet.read_table(tmp_path / "a.parquet")["id"].to_pylist() == [1, None, 3]
    write(tmp_path / "a.parquet", Found([1, "x"], ["a", "b"]), Found([3], ["c"]))
    assert parquet.read_table(tmp_path / "a.parquet")["id"].to_pylist() == ["1", "x", "3"]
    with pytest.raises(RequestError, match="Column 'id' began with numbers") as raised:
        write(tmp_path / "b.parquet", Found([1], ["a"]), Found([SECRET], ["b"]))
    assert raised.value.__cause__ is raised.value.__context__ is None and not (tmp_path / "b.parquet").exists()
    write(tmp_path / "c.parquet", Found([], []))
    assert parquet.read_table(tmp_path / "c.parquet").to_pylist() == []


def test_texts_are_lines_or_one_whole_text(tmp_path: Path) -> None:
    """So that nobody takes the second half of a note for another one."""
    write(tmp_path / "a.txt", Found([1], ["one\r\ntwo\n"]))
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\ntwo\n"
    write(tmp_path / "a.txt", Found([1], ["one"]), Found([2], ["two\x0c"]))
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\x0c\n"
    for chunks in ([Found([1, 2], ["a\nb", "c"])], [Found([1], ["a"]), Found([2], [f"{SECRET}\r"])]):
        with pytest.raises(RequestError, match=r"line breaks.*\n.*-o FILE.jsonl"):
            write(tmp_path / "a.txt", *chunks)
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\x0c\n"


def test_an_output_is_complete_or_not_there(tmp_path: Path) -> None:
    """Whatever stops the work; also a file in place of a shorter or longer one, and a pipe for an array."""
    for ending in WRITERS:
        with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / f"a{ending}") as writer:
            writer.write(Found([1], ["x"]))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    write(tmp_path / "a.npy", Found([*range(50)], ["x"] * 50))
    os.link(tmp_path / "a.npy", tmp_path / "b.npy")  # such a file is overwritten in place
    write(tmp_path / "a.npy", Found([1], ["x"]))
    assert np.load(tmp_path / "b.npy").shape == (1, 3)
    with pytest.raises(RequestError, match="Did you mean: '.parquet'"):
        choose_writer(tmp_path / "a.parqet")
    with pytest.raises(OutputError):
        write(tmp_path / "nowhere" / "a.csv", Found([1], ["x"]))
    reading, writing = os.pipe()
    try:
        with pytest.raises(RequestError, match="cannot be written to a pipe"):
            (tmp_path / "p.npy").symlink_to(f"/dev/fd/{writing}")
            write(tmp_path / "p.npy", Found([1], ["x"]))
    finally:
        os.close(reading)
        os.close(writing)
