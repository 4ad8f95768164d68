"""Rows of every kind of file are the same rows, however large the file and whatever its packing."""

import gzip
import json
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pyarrow
import pytest
from pyarrow import parquet

from specdec.core.errors import RowError, UserError
from specdec.prompts import DatasetPart, json_list, load_prompts, read_message, scan_rows
from specdec.prompts.roles import Roles

ROWS: list[dict[str, Any]] = [
    {"id": str(number), "messages": [{"role": "user", "content": text}]}
    for number, text in enumerate(["one", 'a "quoted" ] text', "\u4e8c\U0001f600", "[{", "0.5e3"])
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def written(folder: Path, name: str) -> Path:
    path = folder / name
    text = LINES if ".jsonl" in name.lower() else json.dumps(ROWS, indent=1)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.parquet", "A.JSONL"]
)
def test_every_kind_of_file_holds_the_same_prompts(tmp_path: Path, name: str) -> None:
    expected = load_prompts(written(tmp_path, "plain.jsonl"))
    assert load_prompts(written(tmp_path, name)) == expected
    assert [prompt.prompt_id for prompt in expected] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_in_pieces_of_any_size(
    size: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "PIECE", size)
    values: list[Any] = [*ROWS, 12345, -0.5, "x", None, [], {}, [1, [2]], True]
    file = StringIO(f" {json.dumps(values, indent=indent)}\n ")
    assert list(json_list.scan_list(Path("a.json"), file)) == values


@pytest.mark.parametrize(
    "text", ["", "[1", "[1,]", "[1 2]", "[1] 2", "[,1]", "{", "[nope]", "]", "[1}", "{} x"]
)
def test_a_broken_list_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^a\.json: not valid JSON"):
        list(json_list.scan_list(Path("a.json"), StringIO(text)))


def test_packed_files_that_are_cut_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    other = tmp_path / "b.parquet"
    other.write_bytes(b"no table")
    for file in (path, other):
        with pytest.raises(UserError, match="cannot be read") as refused:
            load_prompts(file)
        assert "\n" not in str(refused.value)


def test_bad_rows_are_found_between_good_ones(tmp_path: Path) -> None:
    """Each with a reason that does not tell of the place, by which such rows are counted."""
    lines = [b'{"prompt": "fine"}', b"{", b"[]", b'{"prompt": "\xff"}', b'{"prompt": "\\ud83d"}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*lines, lines[0]]))
    found = list(scan_rows(str(path), DatasetPart()))
    reasons = [row.reason for row in found if isinstance(row, RowError)]
    assert reasons == [
        "not valid JSON",
        "expected a JSON object, got list",
        "cannot be read as UTF-8 text",
        "half a character",
    ]
    assert [row.number for row in found if not isinstance(row, RowError)] == [1, 6]


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ({"from": "Human", "value": "x"}, "user"),
        ({"from": "model", "value": "x"}, "assistant"),
        ({"from": "observation", "value": "x"}, "tool"),
        ({"from": "bing", "value": "x"}, "assistant"),
        ({"role": "human", "content": "x"}, "user"),
        ({"role": "USER", "content": "x"}, "user"),
        ({"role": "gpt", "content": "x"}, "assistant"),
        ({"role": "model", "content": "x"}, "assistant"),
        ({"role": "bing", "content": "x"}, "assistant"),
        ({"role": "observation", "content": "x"}, "observation"),
        ({"role": "ipython", "content": "x"}, "ipython"),
        ({"role": "function_call", "content": '{"name": "f"}'}, "assistant"),
    ],
)
def test_roles_are_told_in_the_words_of_templates(said: dict[str, Any], role: str) -> None:
    message = read_message("here", said, Roles({"bing": "assistant"}))
    assert (message.role, message.row["role"]) == (role, role)
    assert "tool_calls" in message.row or message.row["content"] == "x"


def test_unknown_roles_name_the_option() -> None:
    with pytest.raises(RowError, match=r"or data\.roles=\{bing: \.\.\.\}") as refused:
        read_message("here", {"from": "bing", "value": "x"}, Roles(None, "data.roles"))
    assert refused.value.reason == "unknown role 'bing'"
    for wrong in ([1], "x", {"bing": 3}, {"bing": ""}):
        with pytest.raises(UserError, match=r"prompts\.roles="):
            Roles(cast(Any, wrong))


def test_files_with_a_mark_each_may_be_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"\ufeff{line}\ufeff\r\n" for line in LINES.splitlines()))
    assert load_prompts(path) == load_prompts(written(tmp_path, "b.jsonl"))
