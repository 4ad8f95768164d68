"""Every form of a prompt is read, and every complaint says where and what would be right."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from specdec.core.errors import UserError
from specdec.prompts import Message, Prompt, load_prompts, rows
from specdec.prompts import load as module

HELLO = {"prompt": "Hello"}
FORMS = "`turns`, `messages`, `conversations` or `prompt`"
FILES = "a .jsonl, .json or .txt file"


def write_rows(folder: Path, *rows: object, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def complaint(path: Path | str, limit: int | None = None, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        load_prompts(path, limit, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def user(content: str) -> Message:
    return Message("user", content)


def test_a_bare_prompt_is_raw_text(tmp_path: Path) -> None:
    (prompt,) = load_prompts(str(write_rows(tmp_path, {"prompt": " Once \n"})))
    assert prompt == Prompt("1", "", ((user(" Once \n"),),), raw=True)
    assert prompt.num_turns == 1


@pytest.mark.parametrize("form", ["messages", "conversations", "prompt"])
def test_messages_end_with_the_last_one_of_the_user(tmp_path: Path, form: str) -> None:
    history = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in history]
    answer = {"role": "assistant", "content": "the reference"}
    question, answered = load_prompts(
        write_rows(tmp_path, {form: messages}, {form: [*messages, answer]})
    )
    assert question.turns == answered.turns == (tuple(Message(*message) for message in history),)
    assert not question.raw


def test_sharegpt_roles_are_translated(tmp_path: Path) -> None:
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = {"id": "x", "conversations": [{"from": role, "value": text} for role, text in turns]}
    (prompt,) = load_prompts(write_rows(tmp_path, row))
    assert [(m.role, m.content) for m in prompt.turns[0]] == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"),
    ]  # fmt: skip


def test_spec_bench_turns(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    (prompt,) = load_prompts(write_rows(tmp_path, row))
    assert prompt == Prompt("81", "writing", ((user("Write."),), (user("Again."),)))
    assert prompt.num_turns == 2


def test_ids_come_from_the_row_or_its_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path, *({**HELLO, name: name} for name in module.IDS))
    rows = [{**HELLO, "id": 0, "prompt_id": "p"}, {**HELLO, "id": None, "category": None}]
    path.write_text(path.read_text() + "\n" + "".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(path)
    assert [prompt.prompt_id for prompt in prompts] == [*module.IDS, "0", "6"]
    assert prompts[-1].category == ""


def test_a_conversation_is_preferred_to_its_first_message(tmp_path: Path) -> None:
    row = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "turns": None}
    (prompt,) = load_prompts(write_rows(tmp_path, row))
    assert not prompt.raw


def test_a_text_file_is_one_raw_prompt_without_its_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("One.\n\nTwo.\n\n", encoding="utf-8")
    assert load_prompts(path) == [Prompt("1", "", ((user("One.\n\nTwo.\n"),),), raw=True)]


def test_a_json_file_is_a_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([HELLO, {"id": "b", "turns": ["x"]}], indent=1))
    assert [prompt.prompt_id for prompt in load_prompts(path)] == ["1", "b"]


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = write_rows(tmp_path, HELLO, HELLO, "not an object")
    assert len(load_prompts(path, limit=2)) == 2
    assert "prompts.jsonl:3" in complaint(path, limit=3)


def test_the_embedded_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ZOO_FOLDER", tmp_path)
    assert "no such file" in complaint("zoo:prompts")
    write_rows(tmp_path, HELLO)
    assert len(load_prompts("zoo:prompts")) == 1
    assert "prompts.path='zoo:other': expected" in complaint("zoo:other")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "x"}, f"expected one of the fields {FORMS}"),
        ({"prompt": None, "messages": None}, f"expected one of the fields {FORMS}"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"turns": ["x", ""]}, "the prompt is empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "the prompt is empty"),
        ({"turns": []}, "`turns` must be a list of texts"),
        ({"turns": "x"}, "`turns` must be a list of texts"),
        ({"turns": [{"role": "user"}]}, "`turns` must be a list of texts"),
        ({"prompt": 3}, "`prompt` must be text or a list of messages, got int"),
        ({"messages": "x"}, "`messages` must be a list of messages, got str"),
        ({"messages": []}, "`messages` must hold a message of the user"),
        (
            {"conversations": [{"from": "gpt", "value": "x"}]},
            "`conversations` must hold a message of the user",
        ),
        ({"messages": ["x"]}, "a message must be an object, got str"),
        ({"messages": [{"role": "user"}]}, "a message needs `role` and `content`"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown role 'bot'; expected one"),
        ({"id": [1], **HELLO}, "id=[1]: expected text or an integer"),
        ({"category": 0.5, **HELLO}, "category=0.5: expected text or an integer"),
        ({"id": "1", **HELLO}, "the id '1' is taken by an earlier prompt; ids must be unique"),
        ([HELLO], "expected a JSON object, got list"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, row: object, reason: str) -> None:
    path = write_rows(tmp_path, HELLO, row)
    assert complaint(path).startswith(f"{path}:2: {reason}")
    listed = tmp_path / "prompts.json"
    listed.write_text(json.dumps([HELLO, row]))
    assert complaint(listed).startswith(f"{listed}, row 2: {reason}")


def test_broken_json_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n\n{"prompt": \n')
    assert complaint(path).startswith(f"{path}:3: not valid JSON")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"prompt": "x"}\n{"prompt": "y"}\n', "not valid JSON"),
        ('{"prompt": "x"}', "expected a list of rows, got dict"),
    ],
)
def test_a_json_file_of_something_else(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    assert complaint(path).startswith(f"{path}: {reason}")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n"), ("a.json", "[]")])
def test_no_prompts_at_all(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert complaint(path) == f"prompts.path={str(path)!r}: holds no prompts; expected at least one"


def test_an_empty_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n")
    assert complaint(path).startswith(f"{path}: the prompt is empty")


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl"])
def test_a_file_that_is_not_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe")
    assert "cannot be read as UTF-8 text" in complaint(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "folder"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    assert complaint(path).startswith(f"prompts.path={path!r}: no such file")
    assert FILES in complaint(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\nx\n")
    assert complaint(path).startswith(f"prompts.path={str(path)!r}: expected {FILES}")


@pytest.mark.parametrize("limit", [0, -1, True, "3"])
def test_a_wrong_limit(tmp_path: Path, limit: int) -> None:
    path = write_rows(tmp_path, HELLO)
    assert complaint(path, limit) == f"prompts.limit={limit!r}: expected an integer >= 1"


def test_wrong_path_and_split(tmp_path: Path) -> None:
    assert complaint("").startswith(f"prompts.path='': expected {FILES}")
    assert complaint(str(tmp_path), split="") == "prompts.split='': expected the name of a split"


def test_without_the_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = complaint("owner/name")
    assert message.startswith("prompts.path='owner/name'")
    assert "pip install 'specdec-lab[datasets]'" in message


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return package


def test_a_dataset_folder_of_jsonl(tmp_path: Path, datasets: ModuleType) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    folder = tmp_path / "data"
    folder.mkdir()
    # Every row gets the columns of all the others, filled with nulls.
    rows = {"messages": chat}, {"turns": ["x", "y"], "category": "c", "id": 7}, {"prompt": "z"}
    write_rows(folder, *rows, name="train.jsonl")
    prompts = load_prompts(str(folder))
    assert prompts == [
        Prompt("1", "", ((user("a"),),)),
        Prompt("7", "c", ((user("x"),), (user("y"),))),
        Prompt("3", "", ((user("z"),),), raw=True),
    ]
    assert load_prompts(folder, limit=2) == prompts[:2]
    message = complaint(folder, split="test")
    assert message.startswith(f"prompts.path={str(folder)!r}: cannot be loaded as a dataset, split")
    assert "'test'" in message


def test_a_dataset_folder_of_parquet(tmp_path: Path, datasets: ModuleType) -> None:
    folder = tmp_path / "data"
    rows = [{"conversations": [{"from": "human", "value": text}]} for text in ("a", " ")]
    datasets.Dataset.from_list(rows).to_parquet(folder / "test.parquet")
    assert load_prompts(folder, limit=1, split="test") == [Prompt("1", "", ((user("a"),),))]
    message = complaint(folder, split="test")
    assert message.startswith(f"{folder} (test), row 2: the prompt is empty")


def test_a_dataset_that_cannot_be_had(
    datasets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, **part: str | None) -> None:
        raise ConnectionError("Cannot reach the Hub\nTry again later") from None

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = complaint("owner/name")
    assert message.startswith("prompts.path='owner/name': cannot be loaded as a dataset")
    assert "(Cannot reach the Hub)" in message


def test_a_dataset_is_asked_for_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins: nothing is downloaded."""
    loaded: dict[str, object] = {}

    def load_dataset(path: str, **part: str | None) -> list[dict[str, object]]:
        loaded.update(part, path=path)
        call = {"id": "1", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
        messages = [
            {"role": "user", "content": "x", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "y", "tool_calls": None},
        ]
        return [{"messages": messages, "tools": None}]

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    (prompt,) = load_prompts("owner/name", split="test", config="main", revision="v1")
    assert loaded == {"path": "owner/name", "name": "main", "split": "test", "revision": "v1"}
    assert prompt.where == "owner/name (main, test, v1), row 1"
    # A table fills up what rows do not have; templates ask whether it is there.
    user, calling, tool = (message.row for message in prompt.turns[0])
    assert user == {"role": "user", "content": "x"}
    assert tool == {"role": "tool", "content": "y"}
    assert calling["content"] is None
    assert calling["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    ("value", "turns", "raw"),
    [
        ("x", ((user("x"),),), True),
        (["x", "y"], ((user("x"),), (user("y"),)), False),
        ([{"role": "user", "content": "x"}], ((user("x"),),), False),
    ],
)
def test_a_field_of_another_name(tmp_path: Path, value: object, turns: object, raw: bool) -> None:
    path = write_rows(tmp_path, {"question": value, "prompt": "not this"})
    (prompt,) = load_prompts(path, field="question")
    assert (prompt.turns, prompt.raw) == (turns, raw)


CALL = {"name": "weather", "arguments": {"city": "X"}}


def test_sharegpt_with_a_system_tools_and_calls(tmp_path: Path) -> None:
    said = [
        ("human", "Rain?"),
        ("function_call", json.dumps(CALL)),
        ("observation", "sunny"),
        ("gpt", "No."),
        ("human", "Sure?"),
    ]
    turns = [{"from": role, "value": text, "weight": 1} for role, text in said]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"system": "Be brief.", "conversations": turns, "tools": json.dumps(tools)}
    (prompt,) = load_prompts(write_rows(tmp_path, row))
    assert prompt.given == {"tools": tools}
    rows = [dict(message.row) for message in prompt.turns[0]]
    roles = [row["role"] for row in rows]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert rows[0] == {"role": "system", "content": "Be brief."}
    assert rows[2]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert rows[3] == {"role": "tool", "content": "sunny", "weight": 1}


def test_the_last_word_of_a_tool_is_answered(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": CALL}]}
    result = {"role": "tool", "tool_call_id": "1", "name": "get", "content": ""}
    messages = [{"role": "user", "content": "Rain?"}, calling, result]
    answer = {"role": "assistant", "content": "no"}
    question, answered = load_prompts(
        write_rows(tmp_path, {"messages": messages}, {"messages": [*messages, answer]})
    )
    assert [m.row for m in question.turns[0]] == [m.row for m in answered.turns[0]] == messages


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": None}]}, "the prompt is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "the prompt is empty"),
        ({"tools": "none", **HELLO}, "tools='none': expected a list of objects"),
        ({"tools": ["x"], **HELLO}, "tools=['x']: expected a list of objects"),
        ({"system": 3, **HELLO}, "system=3: expected text"),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, {"role": "user"}]},
            "a message needs `role` and `content`",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "x"}]},
            "function_call='x': expected JSON with name and arguments",
        ),
        ({"prompt": "bad \ud83d half"}, r"'bad \ud83d half' holds half a character"),
        ({"id": "\udc00", **HELLO}, r"'\udc00' holds half a character"),
    ],
)
def test_what_no_template_could_take_is_named(tmp_path: Path, row: object, reason: str) -> None:
    path = write_rows(tmp_path, HELLO, row)
    assert complaint(path).startswith(f"{path}:2: {reason}")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": ' + "1" * 5000 + "}"])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    assert complaint(path).startswith(f"{path}:1: not valid JSON")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"prompt": "x"}\r\n{"prompt": "y"}\r\n'),
        ("a.json", '[{"prompt": "x"},\r\n{"prompt": "y"}]'),
        ("a.txt", "x\r\n"),
    ],
)
def test_files_of_other_editors(tmp_path: Path, name: str, text: str) -> None:
    """With a byte order mark and the line ends of Windows."""
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_prompts(path)[0].turns == ((user("x"),),)
