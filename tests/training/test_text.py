"""Every form of training text is read, and every complaint says where."""

import json
from pathlib import Path

import pytest

from specdec.core.errors import RowError, UserError
from specdec.training.data import text as module
from specdec.training.data.reading import Reading
from specdec.training.data.text import Found, Passage, as_text, documents, pieces
from specdec.training.data.tokenizer import END_OF_TEXT, train_tokenizer


def write_rows(folder: Path, *rows: object) -> Path:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: str | Path) -> list[Found]:
    return list(documents(Reading().source(str(path), "data.path")))


def read_texts(path: str | Path) -> list[str]:
    found = [as_text(each).document for each in read(path)]
    return [document.text for document in found if isinstance(document, Passage)]


def complaint(path: Path) -> str:
    """Return what is said of the first row that is none, or of the file."""
    try:
        errors = [each.document for each in read(path) if isinstance(each.document, RowError)]
        message = str(errors[0])
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return message


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_texts(str(path)) == ["one\n\ntwo\n"]


def test_each_row_is_a_document(tmp_path: Path) -> None:
    rows = [{"text": " one\n"}, {"text": ""}, {"text": "\u4e8c", "id": 7}]
    assert read_texts(write_rows(tmp_path, *rows)) == [" one\n", "\u4e8c"]


@pytest.mark.parametrize(
    ("field", "role", "content"),
    [("messages", "role", "content"), ("conversations", "from", "value")],
)
def test_conversations_become_text(tmp_path: Path, field: str, role: str, content: str) -> None:
    turns = [{role: "user", content: "Why?"}, {role: "assistant", content: "Because."}]
    assert read_texts(write_rows(tmp_path, {field: turns})) == ["user: Why?\nassistant: Because."]


def test_a_field_may_be_null(tmp_path: Path) -> None:
    """Exports fill up the columns that a row does not have."""
    turns = [{"from": "human", "value": "Why?"}]
    row = {"text": None, "messages": None, "conversations": turns}
    assert read_texts(write_rows(tmp_path, row)) == ["user: Why?"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"content": "x"}, "`text`, `messages` or `conversations`"),
        ({"text": 5}, "`text`"),
        ({"messages": "x"}, "`messages`"),
        ({"messages": ["x"]}, "object"),
        ({"messages": [{"role": "user"}]}, "`role` and `content`"),
        (["x"], "object"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path: Path, row: object, said: str) -> None:
    path = write_rows(tmp_path, {"text": "fine"}, row)
    message = complaint(path)
    assert f"{path}:2:" in message
    assert said in message


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n\n{"text": \n', encoding="utf-8")
    assert f"{path}:3:" in complaint(path)


@pytest.mark.parametrize("name", ["nothing.txt", "nothing.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "no such file" in message


@pytest.mark.parametrize("name", ["latin.txt", "latin.jsonl"])
def test_other_encodings_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
    message = complaint(path)
    assert str(path) in message
    assert "UTF-8" in message


@pytest.mark.parametrize("name", ["text.csv", "text.parquet", "text.zip"])
def test_other_formats_are_not_read_as_plain_text(tmp_path: Path, name: str) -> None:
    """A model trained on brackets and quotes would look like it had been trained on the text."""
    path = tmp_path / name
    path.write_text('[{"text": "one"}]', encoding="utf-8")
    message = complaint(path)
    assert name in message
    assert ".txt" in message or "parquet" in message


def test_a_conversation_goes_before_the_text_that_repeats_it(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}]
    assert read_texts(write_rows(tmp_path, {"text": "x", "messages": turns})) == ["user: Why?"]


@pytest.mark.parametrize("text", ["a b\ncd ef\n\n gh\n" * 40, "a b " * 200, "x" * 900, ""])
def test_a_long_text_is_cut_where_lines_end(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Its tokens are those of the whole, as long as it has lines or words."""
    monkeypatch.setattr(module, "PIECE", 64)
    cut = list(pieces(iter([text[:50], text[50:]]), module.PIECE))
    assert "".join(piece.text for piece in cut) == text
    assert [piece.ends for piece in cut] == [False] * (len(cut) - 1) + [True] * bool(cut)
    assert all(len(piece.text) <= 128 for piece in cut)
    tokenizer = train_tokenizer(["a b cd ef gh " * 20], vocab_size=270)
    tokens = [token for piece in cut for token in tokenizer(piece.text)["input_ids"]]
    assert tokens == tokenizer(text)["input_ids"]


def test_another_field_holds_the_text(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path, {"text": "x", "content": "y"}))
    found = documents(Reading(field="content").source(path, "data.path"))
    assert [each.document for each in found] == [Passage("y")]


def test_the_tokenizer_loses_nothing() -> None:
    """Byte-level: whatever it was trained on, any text comes back as it was."""
    tokenizer = train_tokenizer(["the cat sat on the mat. " * 20], vocab_size=270)
    for text in ("the cat", " a  b\n\n\tc ,d .", "\u4e8c\U0001f600", "it 's n't \u00e9"):
        token_ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(token_ids) == text
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    assert tokenizer.convert_ids_to_tokens(end) == END_OF_TEXT
    assert len(tokenizer) <= 270


@pytest.mark.parametrize(
    "row",
    [
        {"token_ids": ["a", "b"], "num_prompt_tokens": 1},
        {"token_ids": [1, 2.0], "num_prompt_tokens": 1},
        {"token_ids": [1, 2], "num_prompt_tokens": -1},
        {"token_ids": [1, 2], "num_prompt_tokens": 2},
        {"token_ids": [1, 2]},
    ],
    ids=["strings", "floats", "negative", "no answer", "no number"],
)
def test_written_tokens_that_are_none_are_named(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "written.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert f"{path}:1: expected `token_ids`" in complaint(path)
