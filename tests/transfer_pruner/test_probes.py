"""Probe texts: the same whatever they are kept in, and an error that says what to do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from transfer_pruner import probe_texts

TEXTS = [f"report number {i}" for i in range(30)] + ["NA", "None", "Überflutung in Köln"]
LABELS = [i % 3 for i in range(len(TEXTS))]
TABLE = pd.DataFrame({"text": TEXTS, "label": LABELS})


def json_lines(file: Path) -> None:
    lines = (json.dumps(row, ensure_ascii=False) for row in TABLE.to_dict("records"))
    file.write_text("\n".join(lines), encoding="utf-8")


def parquet(file: Path) -> None:
    pytest.importorskip("pyarrow")
    TABLE.to_parquet(file)


WRITE: dict[str, Callable[[Path], Any]] = {
    "probe.csv": lambda file: TABLE.to_csv(file, index=False),
    "probe.tsv": lambda file: TABLE.to_csv(file, index=False, sep="\t"),
    "probe.jsonl": json_lines,
    "probe.parquet": parquet,
    "probe.txt": lambda file: file.write_text("\n".join(TEXTS), encoding="utf-8"),
}


@pytest.mark.parametrize("name", WRITE)
def test_every_kind_of_file_gives_the_same_probe(name: str, tmp_path: Path) -> None:
    WRITE[name](tmp_path / name)
    assert probe_texts(tmp_path / name, n=10) == probe_texts(TEXTS, n=10)
    assert set(probe_texts(tmp_path / name, n=None)) == set(TEXTS)


def test_a_data_set_of_hugging_face_and_a_data_frame_do_too() -> None:
    datasets = pytest.importorskip("datasets")
    wanted = probe_texts(TEXTS, n=10)
    assert probe_texts(datasets.Dataset.from_pandas(TABLE), n=10) == wanted
    assert probe_texts(TABLE.rename(columns={"text": "tweet"}), column="tweet", n=10) == wanted
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_pandas(TABLE)})
    with pytest.raises(ValueError, match=r"the splits train: give one of them, as data\[...\]"):
        probe_texts(splits)


@given(st.lists(st.text(), max_size=30), st.integers(1, 10), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_nor_empty_texts_matter(
    texts: list[str], n: int, shuffle: random.Random
) -> None:
    texts = [*texts, "one there is"]
    again = [*texts, *texts, "", "  "]
    shuffle.shuffle(again)
    drawn = probe_texts(again, n=n)
    assert drawn == probe_texts(texts, n=n)
    assert len(drawn) == len(set(drawn)) == min(n, len({text for text in texts if text.strip()}))


def test_a_longer_file_keeps_most_of_what_a_shorter_one_gave() -> None:
    before = probe_texts([f"text {i}" for i in range(1000)], n=64)
    after = probe_texts([f"text {i}" for i in range(1100)], n=64)
    assert len(set(before) & set(after)) >= 50
    assert probe_texts([f"text {i}" for i in range(1000)], n=64, seed=1) != before


@pytest.mark.parametrize("value", [1, "1", 1.0])
def test_texts_of_one_class_are_taken_however_its_label_is_written(
    value: object, tmp_path: Path
) -> None:
    wanted = {text for text, label in zip(TEXTS, LABELS, strict=True) if label == 1}
    assert set(probe_texts(TABLE, only={"label": value}, n=None)) == wanted
    with_gaps = TABLE.assign(label=TABLE["label"].where(TABLE["label"] > 0))
    assert set(probe_texts(with_gaps, only={"label": value}, n=None)) == wanted
    for table in (TABLE, with_gaps):
        table.to_csv(tmp_path / "probe.csv", index=False)
        assert set(probe_texts(tmp_path / "probe.csv", only={"label": value}, n=None)) == wanted


@pytest.mark.parametrize("value", [1, "true", True, "True", "1.0"])
@pytest.mark.parametrize("kind", ["bool", "words", "numbers"])
def test_true_is_one(value: object, kind: str) -> None:
    labels = pd.Series([label == 1 for label in LABELS])
    if kind != "bool":
        labels = labels.map(
            {True: "true", False: "false"} if kind == "words" else {True: 1, False: 0}
        )
    wanted = {text for text, label in zip(TEXTS, LABELS, strict=True) if label == 1}
    assert set(probe_texts(TABLE.assign(label=labels), only={"label": value}, n=None)) == wanted


def test_classes_that_only_look_alike_are_not_one() -> None:
    table = pd.DataFrame({"text": ["a", "b", "c"], "zip": ["01", "1", "1.5"]})
    assert probe_texts(table, only={"zip": 1}) == ["b"]
    assert probe_texts(table, only={"zip": "01"}) == ["a"]
    assert probe_texts(table, only={"zip": 1.5}) == ["c"]


def test_an_empty_class_names_the_classes_that_there_are() -> None:
    with pytest.raises(ValueError, match="label=5 leaves no text; label has: 0, 1, 2"):
        probe_texts(TABLE, only={"label": 5})


def as_file(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"tweet,label\nhelp,1\n", r"lacks the column 'text'; it has: tweet, label"),
        ("a.csv", b"", r"is no CSV file with a header"),
        ("a.csv", b"text\n\n  \n", r"holds no text in the column 'text'"),
        ("a.csv", b"text\n\xff\xfe\n", r"is not UTF-8 .* save it as UTF-8"),
        ("a.jsonl", b'{"text": "help"}\n{"text"', r"no file of JSON lines \(line 2: "),
        ("a.jsonl", b'{"text": "help"}\n[1]\n', r"line 2 is neither an object nor a string"),
        ("a.jsonl", b'{"text": 3}\n', r"must hold texts but has 3"),
        ("a.parquet", b"text\nhelp\n", r"is no Parquet file"),
        (
            "a.csv",
            b"text,label\nhelp, please,1\n",
            r"line 2 has 3 cells and the header 2: quote te",
        ),
        ("a.csv", b"text,label\nhelp,1\nplease\n", r"line 3 has 1 cells and the header 2"),
        ("a.csv", b'text,label\n"help" he said,1\n', r"line 2: .*; quote texts that hold quotes"),
        ("a.csv", b'text,label\n"help,1\nplease,0\n', r"quote texts that hold quotes"),
        (
            "a.csv",
            b"text;label\nhelp;1\n",
            r"seem to be separated by ';': write it with commas, or",
        ),
        ("a.csv", b"text\tlabel\nhelp\t1\n", r"separated by '\\t': write it .* with tabs as \.tsv"),
        ("a.tsv", b"text,label\nhelp,1\n", r"separated by ','"),
        ("a.tsv", b"text\tlabel\nhelp\n", r"no TSV file with a header .line 2 has 1 cells"),
        ("a.csv", b"text,text\nhelp,1\n", r"has several columns 'text'"),
        ("a.xlsx", b"PK\3\4", r"is a spreadsheet: save it as CSV"),
        ("a.json", b'{"text": {"0": {"a": 1}}}', r"must hold texts but has \{'a': 1\}"),
        ("a.json", b'[{"text": ["help"]}]', r"must hold texts but has \['help'\]"),
        ("a.json", b'["help", 3]', r"item 2 is neither an object nor a string"),
        ("a.json", b'{"text": ["a", "b"], "label": [1]}', r"no file of JSON lines .*same length"),
        ("a.csv.gz", b"text\nhelp\n", r"is no CSV file with a header .*gzip"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message):
        probe_texts(as_file(tmp_path, name, content))


def test_what_is_no_file_and_no_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        probe_texts(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"data is the folder .*: give a file in it"):
        probe_texts(tmp_path)
    with pytest.raises(ValueError, match="a sequence of texts but got int"):
        probe_texts(3)
    with pytest.raises(ValueError, match="n must be at least 1, or None for all texts, but got 0"):
        probe_texts(TEXTS, n=0)


AWKWARD = [
    "a, b",
    'he said "help"',
    '"quoted" at first',
    "two\nlines",
    "tab\there",
    "wide\u2028line",
]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(texts=st.lists(st.text("ab,;\t\n\r\"' é\u2028\x85", max_size=9), min_size=1, max_size=6))
@example(texts=AWKWARD)
def test_what_pandas_writes_is_read_as_it_was(
    suffix: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("tables") / f"probe.{suffix}"
    texts = [f"{text}." for text in texts]
    # With tabs such a text could as well be quotes at the ends of rows.
    assume(suffix == "csv" or not any("\t" in text and "\n" in text for text in texts))
    separator = "," if suffix == "csv" else "\t"
    table = pd.DataFrame({"text": texts, "label": 1})
    table.to_csv(file, index=False, sep=separator, lineterminator="\r\n")
    assert set(probe_texts(file, n=None)) == set(texts)


@pytest.mark.parametrize("orient", ["columns", "records", "lines", "list"])
def test_whatever_json_pandas_writes_is_read(orient: str, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    if orient == "list":
        file.write_text(json.dumps(TABLE.to_dict("list"), indent=1))
    elif orient == "lines":
        TABLE.to_json(file, orient="records", lines=True)
    else:
        TABLE.to_json(file, orient=orient, indent=2)
    assert set(probe_texts(file, n=None)) == set(TEXTS)
    assert len(probe_texts(file, only={"label": 2}, n=None)) == LABELS.count(2)


def test_a_comma_at_the_end_of_rows_shifts_nothing(tmp_path: Path) -> None:
    for header in ("text,label", "text,label,"):
        file = as_file(tmp_path, "a.csv", f"{header}\nhelp,1,\n\nwater,0,\n".encode())
        assert set(probe_texts(file, n=None)) == {"help", "water"}
        assert probe_texts(file, only={"label": 0}) == ["water"]


def test_stray_quotes_in_a_table_with_tabs_merge_no_lines(tmp_path: Path) -> None:
    rows = ['"help', 'water" she said', '"food"', 'a 5" pipe', '"two', 'more"']
    content = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(rows))
    file = as_file(tmp_path, "a.TSV", f"text\tlabel\n{content}".encode())
    assert set(probe_texts(file, n=None)) == set(rows)


def test_a_text_file_ends_its_lines_where_an_editor_does(tmp_path: Path) -> None:
    texts = ["one\u2028line", "and\x0bone\x0c", "too\x85"]
    file = as_file(tmp_path, "a.txt", "\r\n".join(texts).encode())
    assert set(probe_texts(file, n=None)) == set(texts)


def test_a_compressed_file_is_read_as_the_one_in_it(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "probe.csv.gz", index=False)
    TABLE.to_json(tmp_path / "probe.jsonl.xz", orient="records", lines=True)
    for name in ("probe.csv.gz", "probe.jsonl.xz"):
        assert set(probe_texts(tmp_path / name, n=None)) == set(TEXTS)
