"""The verifier answers training data anew: whatever interrupts it, with the same answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl
from specdec.decoding import decoder
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.training.data.answer_file import AnswerFile
from specdec.training.data.distill import Distill
from specdec.training.data.verifier_states import VerifierStates
from tests.support.building import prepared
from tests.support.running import Tiny

SMALL: dict[str, Any] = {"max_new_tokens": 12, "prompt_tokens": 6, "batch": 3}
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "add?"},
    {"role": "assistant", "content": "return first + second"},
    {"role": "user", "content": "print?"},
    {"role": "assistant", "content": "print(add(1, 2))"},
]


@pytest.fixture
def speaker(verifier: HFCausalLM) -> Iterator[HFCausalLM]:
    """A verifier with a chat template; the tokenizer is shared with other tests."""
    assert verifier.tokenizer is not None
    verifier.tokenizer.chat_template = CHATML
    yield verifier
    verifier.tokenizer.chat_template = None


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(Path(path))]


def conversations(folder: Path, *talks: Any) -> str:
    path = folder / "talks.jsonl"
    rows = [json.dumps({"messages": talk}) for talk in talks]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def answered(verifier: HFCausalLM, data: Any, path: Path, **options: Any) -> list[dict[str, Any]]:
    return rows_of(Distill(str(path), **(SMALL | options)).data_path(verifier, str(data)))


def test_off_is_the_data_itself(verifier: HFCausalLM, tiny: Tiny) -> None:
    assert Distill().data_path(verifier, str(tiny.text)) == str(tiny.text)


def test_a_cold_verifier_writes_what_generate_writes(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path
) -> None:
    """Each block's first tokens are continued greedily, and the file is what training reads."""
    assert verifier.tokenizer is not None
    rows = answered(verifier, tiny.text, tmp_path / "new.jsonl", temperature=0.0)
    text = [*verifier.encode(tiny.text.read_text()), verifier.tokenizer.eos_token_id]
    assert len(rows) == sum(len(text) - start >= 6 for start in range(0, len(text), 18))
    for number, row in enumerate(rows):
        prompt = text[18 * number : 18 * number + 6]
        assert row["token_ids"][: row["num_prompt_tokens"]] == prompt
        model: Any = verifier.model
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert row["token_ids"] == expected[0].tolist(), row["id"]
        assert row["finish_reason"] == ("length" if len(row["token_ids"]) == 18 else "eos")


def test_the_temperature_and_the_seed_decide(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path
) -> None:
    written = {
        name: answered(verifier, tiny.text, tmp_path / f"{name}.jsonl", limit=4, **options)
        for name, options in {
            "one": {"seed": 1},
            "again": {"seed": 1, "batch": 1},
            "other": {"seed": 2},
            "cold": {"seed": 1, "temperature": 0.0},
            "narrow": {"seed": 1, "top_k": 1},
        }.items()
    }
    assert written["one"] == written["again"], "the answers depend on the batch"
    texts = {name: [row["token_ids"] for row in rows] for name, rows in written.items()}
    assert texts["narrow"] == texts["cold"]
    assert texts["one"] != texts["other"]
    assert texts["one"] != texts["cold"]


@pytest.mark.parametrize("torn", ["", '{"id": "block 9", "token_ids": [1, 2', "\0\0"])
def test_an_interrupted_run_goes_on_with_what_is_missing(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    """The rows, and even the bytes, are those of an undisturbed run."""
    undisturbed = answered(verifier, tiny.text, tmp_path / "undisturbed.jsonl")
    assert len(undisturbed) > 8
    append = AnswerFile.append
    written: list[str] = []

    def interrupted(self: AnswerFile, row: Any) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        append(self, row)
        written.append(row["id"])

    path = tmp_path / "interrupted.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answered(verifier, tiny.text, path)
    assert len(rows_of(path)) == 4
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)

    def noted(self: AnswerFile, row: Any) -> None:
        append(self, row)
        written.append(row["id"])

    monkeypatch.setattr(AnswerFile, "append", noted)
    assert answered(verifier, tiny.text, path) == undisturbed
    assert sorted(written) == sorted(row["id"] for row in undisturbed), "an answer twice, or none"
    assert path.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_rows_end_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    """Whichever texts end first, and in whichever run."""
    ids, path = ["a", "b", "c"], tmp_path / "new.jsonl"
    for new in (["c", "a"], ["b"]):
        answers = AnswerFile(str(path), {"seed": 0})
        assert not answers.is_complete()
        assert answers.begin(ids) == {"a", "c"} - set(new)
        for each in new:
            answers.append({"id": each})
    answers.finish(ids)
    assert answers.is_complete()
    assert [row["id"] for row in rows_of(path)] == ids


def test_a_complete_file_is_used_as_it_is(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answered(verifier, tiny.text, tmp_path / "new.jsonl")

    def refuse(*_: Any) -> None:
        raise AssertionError("the verifier was asked again")

    monkeypatch.setattr(decoder.SpeculativeDecoder, "stream", refuse)
    assert answered(verifier, tiny.text, tmp_path / "new.jsonl", batch=5) == first
    manifest = json.loads((tmp_path / "new.jsonl.json").read_text())
    assert manifest["complete"] is True
    assert manifest["num_samples"] == len(first)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"seed": 1, "limit": 3}, "limit, seed"),
        ({"top_k": 3, "top_p": 0.5}, "top_k, top_p"),
        ({"max_new_tokens": 13, "prompt_tokens": 5}, "max_new_tokens, prompt_tokens"),
        ({}, "data"),
    ],
)
def test_other_settings_are_refused(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path = tmp_path / "new.jsonl"
    before = answered(verifier, tiny.text, path, limit=2)
    data = tiny.text if changed else tiny.prompts
    with pytest.raises(UserError) as caught:
        answered(verifier, data, path, **({"limit": 2} | changed))
    assert f"({named} differ)" in str(caught.value)
    assert str(caught.value).startswith(f"distill.path={str(path)!r}: ")
    assert "\n" not in str(caught.value)
    assert rows_of(path) == before


def test_another_verifier_is_refused(verifier: HFCausalLM, tiny: Tiny, tmp_path: Path) -> None:
    answered(verifier, tiny.text, tmp_path / "new.jsonl", limit=1)
    with pytest.raises(UserError, match=r"\(verifier differ\)"):
        answered(load(str(tiny.draft)), tiny.text, tmp_path / "new.jsonl", limit=1)


def test_a_file_of_somebody_else_is_not_touched(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("mine\n")
    with pytest.raises(UserError, match="was not written by `distill`"):
        answered(verifier, tiny.text, path)
    assert path.read_text() == "mine\n"


def test_every_turn_of_the_assistant_is_answered(speaker: HFCausalLM, tmp_path: Path) -> None:
    """After the data's own messages, up to where the template invites to answer."""
    data = conversations(tmp_path, TALK, TALK[:2])
    rows = answered(speaker, data, tmp_path / "new.jsonl")
    prompts = [speaker.decode(row["token_ids"][: row["num_prompt_tokens"]]) for row in rows]
    first = "<user>add?</>\n<assistant>"
    second = f"{first}return first + second</>\n<user>print?</>\n<assistant>"
    assert prompts == [first, second, first]
    assert [row["id"] for row in rows] == ["row 1 message 2", "row 1 message 4", "row 2 message 2"]


def test_what_does_not_fit_is_left_out_with_a_count(
    speaker: HFCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [{"role": "user", "content": "add " * 300}, TALK[1]]
    rows = answered(speaker, conversations(tmp_path, long, TALK), tmp_path / "new.jsonl")
    assert [row["id"] for row in rows] == ["row 2 message 2", "row 2 message 4"]
    said = "1 answer left out: a prompt that does not fit the verifier's context of 256 tokens"
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="no prompt to answer that fits"):
        answered(speaker, conversations(tmp_path, long), tmp_path / "other.jsonl")


def test_states_are_those_of_the_answers(verifier: HFCausalLM, tiny: Tiny, tmp_path: Path) -> None:
    """Prompts do not count; held-out data stay as they are."""
    distill = Distill(str(tmp_path / "new.jsonl"), **SMALL)
    paths = (str(tiny.text), str(tiny.text))
    states = prepared(VerifierStates(verifier, *paths, max_length=24, distill=distill))
    rows = {tuple(row["token_ids"]): row for row in rows_of(tmp_path / "new.jsonl")}
    batch = states.batch(0, len(rows))
    for ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        length = int(counted.nonzero()[-1]) + 1
        row = rows[tuple(ids[:length].tolist())]
        assert counted.tolist() == [
            row["num_prompt_tokens"] <= place < length for place in range(len(ids))
        ]
    plain = prepared(VerifierStates(verifier, *paths, max_length=24))
    assert torch.equal(states.held_out.token_ids, plain.held_out.token_ids)


def test_answers_that_begin_too_late_are_left_out_of_training(
    speaker: HFCausalLM, tmp_path: Path
) -> None:
    data = conversations(tmp_path, TALK)
    path = str(tmp_path / "new.jsonl")
    rows = answered(speaker, data, tmp_path / "new.jsonl")
    short, long = (row["num_prompt_tokens"] for row in rows)
    assert short < long
    distill = Distill(path, **SMALL)
    states = prepared(VerifierStates(speaker, data, data, max_length=long, distill=distill))
    assert len(states.batch(0, 1).token_ids[0]) < long
    assert f"rows left out: the answer begins behind {long} tokens" in "".join(states.notes())
    with pytest.raises(UserError, match=f"the answer begins behind {short} tokens"):
        VerifierStates(speaker, path, path, max_length=short).prepare()


@pytest.mark.parametrize(
    "options",
    [
        {"path": "answers.txt"},
        {"path": 3},
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"max_new_tokens": 0},
        {"prompt_tokens": 0},
        {"batch": 0},
        {"limit": 0},
        {"seed": -1},
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=rf"^{name}="):
        Distill(**options)


@pytest.mark.parametrize("damage", ["deleted", "cut", "a line less", "garbled"])
def test_answers_that_are_not_as_written_are_given_again(
    verifier: HFCausalLM,
    tiny: Tiny,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the manifest calls complete; rows that are whole are kept."""
    path = tmp_path / "new.jsonl"
    expected = answered(verifier, tiny.text, path)
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[1])
    row["token_ids"][-1] += 1
    others = [lines[0], json.dumps(row) + "\n", *lines[2:]]
    texts = {"cut": "".join(lines)[:-9], "a line less": "".join(lines[:-1])}
    texts["garbled"] = "".join(others)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_text(texts[damage])
    capsys.readouterr()
    assert answered(verifier, tiny.text, path) == expected
    printed = capsys.readouterr().out
    assert f"{path}: not as it was written; " in printed
    assert f" of {len(expected)} answers are given again" in printed


def test_answers_of_another_file_are_not_taken_for_these(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path
) -> None:
    """Rows are called alike in all files, and each of them is as it was written."""
    path, other = tmp_path / "new.jsonl", tmp_path / "other.jsonl"
    expected = answered(verifier, tiny.text, path)
    answered(verifier, tiny.text, other, seed=5)
    path.write_bytes(other.read_bytes())
    assert answered(verifier, tiny.text, path) == expected
    path.with_name("new.jsonl.json").unlink()
    path.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="was not written by `distill` with these settings"):
        answered(verifier, tiny.text, path)


@pytest.mark.parametrize("harm", ["a line less", "a row twice"])
def test_answers_that_are_named_as_data_must_be_whole(
    verifier: HFCausalLM, tiny: Tiny, tmp_path: Path, harm: str
) -> None:
    path = tmp_path / "new.jsonl"
    answered(verifier, tiny.text, path)
    read = VerifierStates(verifier, str(path), str(tiny.text), 32, eval_samples=2)
    read.prepare()
    assert read.num_samples
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1] if harm == "a line less" else [*lines, lines[0]]))
    with pytest.raises(UserError, match=r"^data\.path=.*: answers that are interrupted"):
        VerifierStates(verifier, str(path), str(tiny.text), 32, eval_samples=2).prepare()


def test_whoever_comes_second_waits_for_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "new.jsonl")
    first, second = AnswerFile(path, {"seed": 0}), AnswerFile(path, {"seed": 0})

    def write() -> None:
        with second.held():
            pass

    waiting = Thread(target=write)
    with first.held():
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert f"{path}: being written by another process; waiting" in capsys.readouterr().out
