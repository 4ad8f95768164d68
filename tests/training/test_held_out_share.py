"""What is held out when nobody says what, and what is said when it is trained on, too."""

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.lm.hf import HFCausalLM
from specdec.training.data.distill_prompts import Asking
from specdec.training.data.left_out import LeftOut
from specdec.training.data.overlap import RUN
from specdec.training.data.reading import Reading, Share
from specdec.training.data.samples import Samples
from specdec.training.data.text import Passage, documents
from specdec.training.data.tokenizer import train_tokenizer
from specdec.training.data.verifier_states import VerifierStates


def rows(path: Path, number: int) -> str:
    path.write_text("".join(json.dumps({"text": f"row {n} of many"}) + "\n" for n in range(number)))
    return str(path)


def texts(source: Any) -> list[str]:
    return [
        found.document.text for found in documents(source) if isinstance(found.document, Passage)
    ]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_a_share_of_the_rows_is_held_out_and_not_trained_on(tmp_path: Path, share: float) -> None:
    path = rows(tmp_path / "rows.jsonl", 200)
    learnt, held_out = map(texts, Reading(held_out_share=share).sources(path, None))
    assert len(held_out) == round(200 * share)
    assert not set(learnt) & set(held_out)
    assert len(learnt) + len(held_out) == 200
    first, second = held_out[: len(held_out) // 2], held_out[len(held_out) // 2 :]
    assert int(first[-1].split()[1]) < 100 <= int(second[0].split()[1])  # evenly spread


def test_pieces_of_a_long_text_are_held_out(tmp_path: Path) -> None:
    text = "".join(f"line {n} of a long text\n" for n in range(9000))
    path = tmp_path / "long.txt"
    path.write_text(text)
    learnt, held_out = map(texts, Reading().sources(str(path), None))
    assert sorted("".join(learnt + held_out).splitlines()) == sorted(text.splitlines())
    assert 0.03 < len("".join(held_out)) / len(text) < 0.07


def test_what_is_named_is_whole_and_a_split_of_its_own_is_taken(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", 20)
    learnt, held_out = Reading().sources(path, path)
    assert texts(learnt) == texts(held_out) == texts(Reading().source(path, "data.path"))
    learnt, held_out = Reading(split="train", held_out_split="test").sources("talks", None)
    assert (learnt.path, learnt.part.split, learnt.share) == ("talks", "train", None)
    assert (held_out.path, held_out.part.split, held_out.share) == ("talks", "test", None)


def test_too_few_rows_are_said_in_one_line(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", 5)
    _, held_out = Reading().sources(path, None)
    with pytest.raises(UserError, match=r"no 0\.05 of 5 rows can be held out; expected data\.held"):
        texts(held_out)


def test_the_verifier_does_not_answer_what_is_held_out(tmp_path: Path) -> None:
    written = [{"token_ids": [n, 1, 2], "num_prompt_tokens": 2} for n in range(20)]
    path = tmp_path / "written.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    learnt, held_out = Reading(held_out_share=0.25).sources(str(path), None)
    asking = Asking(train_tokenizer(["a b c " * 50], 260), {}, 4, 8)
    firsts = [
        {request.token_ids[0] for request in asking.requests(source, LeftOut())}
        for source in (learnt, held_out)
    ]
    assert (len(firsts[0]), len(firsts[1])) == (15, 5)
    assert firsts[0] | firsts[1] == set(range(20))


def test_held_out_text_that_is_trained_on_is_found_wherever_it_stands(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat. " * 9], 270)
    reading = Reading(tokens_path=str(tmp_path / "tokens"))
    words = [f"{n * 7919 % 1000:03d}" for n in range(1, 700)]
    (tmp_path / "learnt.txt").write_text(" ".join(words[:600]))
    # One sample is in the text at another place of its blocks, the other one is not.
    for name, text in (("copied", words[100:150]), ("new", words[600:650])):
        (tmp_path / f"{name}.txt").write_text(" ".join(text))
    learnt = Samples.read(str(tmp_path / "learnt.txt"), tokenizer, 50, reading=reading)
    for name, number in (("copied", True), ("new", False)):
        samples = Samples.read(str(tmp_path / f"{name}.txt"), tokenizer, RUN, reading=reading)
        batch = samples.batch([1])  # its last tokens are not those of the end
        assert learnt.num_shared(batch) == number


def test_a_share_says_of_every_row_whose_it_is() -> None:
    both = [Share(0.05, is_held_out) for is_held_out in (False, True)]
    for number in range(1000):
        assert [share.has(number) for share in both].count(True) == 1


def test_notes_name_the_option_and_say_what_is_trained_on_too(
    verifier: HFCausalLM, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"the same words again, {n % 2}. " * 30}) for n in range(40)]
    path.write_text("\n".join([*lines[:9], '{"text": 1}', *lines[10:]]) + "\n")  # which is held out
    states = VerifierStates(verifier, str(path), max_length=64)
    states.prepare()
    notes = states.notes()
    assert notes[0].startswith("data.held_out_share: 1 of 2 rows left out")
    number = len(states.held_out.token_ids)
    assert f"data.held_out_share: {number} of {number} held-out samples share 32 tokens" in notes[1]
    assert "0.05 of the rows held out" in states.data
