"""Tokens are made once, for all that want the same, and never taken for those of something else."""

import gzip
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.training.data import token_store, tokenised
from specdec.training.data.reading import Reading
from specdec.training.data.samples import Samples
from specdec.training.data.token_store import HEADER, STARTS, TOKENS, TokenStore, TokenWriter
from specdec.training.data.tokenised import Builder
from specdec.training.data.tokenizer import train_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ mood }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": "b"}]}
    for n in range(12)
]


@pytest.fixture
def tokenizer() -> Any:
    trained = train_tokenizer(["the cat sat on the mat. " * 9], 270)
    trained.chat_template = TEMPLATE
    return trained


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "talks.jsonl"
    file.write_text(lines(ROWS))
    return file


def stores(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())


def samples(path: Path, tokenizer: Any, length: int = 64, **options: Any) -> Samples:
    reading = Reading(tokens_path=str(path.parent / "tokens"), **options)
    return Samples.read(str(path), tokenizer, length, reading=reading)


def test_they_are_made_once_and_anew_for_all_that_decides_on_them(
    path: Path, tokenizer: Any
) -> None:
    home = path.parent / "tokens"
    samples(path, tokenizer)
    (only,) = stores(home)
    made = (only / HEADER).stat().st_mtime_ns
    samples(path, tokenizer)
    samples(path, tokenizer, strict=True)
    assert stores(home) == [only]
    assert (only / HEADER).stat().st_mtime_ns == made
    samples(path, tokenizer, 32)
    samples(path, tokenizer, template_options={"mood": "low"})
    samples(path, tokenizer, roles={"human": "user"})
    tokenizer.chat_template = "!" + TEMPLATE
    samples(path, tokenizer)
    tokenizer.add_tokens(["<new>"])
    samples(path, tokenizer)
    path.write_text(path.read_text().replace("a 7", "a 8"))
    samples(path, tokenizer)
    assert len(stores(home)) == 7


@pytest.mark.parametrize("name", [TOKENS, STARTS, HEADER])
@pytest.mark.parametrize("harm", ["cut", "other", "gone", "longer"])
def test_what_is_not_as_it_was_written_is_made_again(
    path: Path, tokenizer: Any, name: str, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = samples(path, tokenizer).take(0, 12)
    (store,) = stores(path.parent / "tokens")
    file, content = store / name, (store / name).read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        changed = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes({"cut": content[:-4], "other": changed, "longer": content + b"1"}[harm])
    assert TokenStore.open(store) is None
    after = samples(path, tokenizer).take(0, 12)
    assert f"{store}: not whole, or not as it was written" in capsys.readouterr().out
    assert torch.equal(before.token_ids, after.token_ids)
    assert torch.equal(before.counted, after.counted)


@pytest.mark.parametrize("name", ["num_samples", "num_tokens", "num_counted"])
def test_numbers_that_were_changed_are_not_believed(path: Path, tokenizer: Any, name: str) -> None:
    samples(path, tokenizer)
    (store,) = stores(path.parent / "tokens")
    header = json.loads((store / HEADER).read_text())
    (store / HEADER).write_text(json.dumps({**header, name: header[name] - 1}))
    assert TokenStore.open(store) is None


def test_the_tokens_of_other_data_are_not_taken_for_these(path: Path, tokenizer: Any) -> None:
    """Each folder is whole, and lies where the other was."""
    expected = samples(path, tokenizer).take(0, 12)
    (ours,) = stores(path.parent / "tokens")
    samples(path, tokenizer, template_options={"mood": "low"})
    (other,) = [each for each in stores(path.parent / "tokens") if each != ours]
    shutil.rmtree(ours)
    other.rename(ours)
    found = samples(path, tokenizer).take(0, 12)
    assert torch.equal(found.token_ids, expected.token_ids)


def test_what_is_interrupted_leaves_nothing_to_be_believed(
    path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_store, "write_note", stop)
        with pytest.raises(KeyboardInterrupt):
            samples(path, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            samples(path, tokenizer)
    assert len(samples(path, tokenizer)) == 12


def test_those_that_come_at_once_make_them_once(
    path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second waits, and finds all that the first one made."""
    made: list[Path] = []
    build = Builder.build

    def noted(self: Builder, folder: Path) -> TokenStore:
        made.append(folder)
        return build(self, folder)

    monkeypatch.setattr(Builder, "build", noted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: len(samples(path, tokenizer)), range(4)))
    assert found == [12] * 4
    assert len(made) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.json.gz", "b.jsonl", "a.parquet"])
def test_files_of_every_kind_give_the_same_samples(path: Path, tokenizer: Any, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    other = path.parent / name
    text = lines(ROWS) if ".jsonl" in name else json.dumps(ROWS)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), other)
    elif name.endswith(".gz"):
        other.write_bytes(gzip.compress(text.encode()))
    else:
        other.write_text(text, encoding="utf-8-sig")
    expected, found = samples(path, tokenizer), samples(other, tokenizer)
    assert torch.equal(found.take(0, 12).token_ids, expected.take(0, 12).token_ids)
    assert found.num_counted == expected.num_counted


def test_plain_text_is_cut_into_blocks_that_count_whole(path: Path, tokenizer: Any) -> None:
    path.write_text(lines([{"text": "the cat "}, {"text": "the mat. " * 20}]))
    end: Any = tokenizer.eos_token_id
    ids = [*tokenizer("the cat ")["input_ids"], end, *tokenizer("the mat. " * 20)["input_ids"], end]
    found = samples(path, tokenizer, 16)
    blocks = [ids[start : start + 16] for start in range(0, len(ids) - 2, 16)]
    assert [found.batch([n]).token_ids[0].tolist() for n in range(len(found))] == blocks
    assert all(bool(found.batch([n]).counted.all()) for n in range(len(found)))
    assert found.num_counted == sum(map(len, blocks)) - len(blocks)
    longer = samples(path, tokenizer, len(ids) - 2)  # two tokens are no block
    assert longer.lengths.tolist() == [len(ids) - 2]


def test_a_folder_that_nobody_can_write_to(
    path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was asked for is an error; in place of the cache a temporary one will do."""
    blocked = path.parent / "blocked"
    blocked.write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        Samples.read(str(path), tokenizer, 64, reading=Reading(tokens_path=str(blocked)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(tokenised, "gettempdir", lambda: str(path.parent))
    assert len(Samples.read(str(path), tokenizer, 64)) == 12
    assert any(each.name.startswith("specdec-tokens-") for each in path.parent.iterdir())


class Slow:
    """A tokenizer without offsets, backend or batches of its own: one token a character."""

    eos_token_id = None
    chat_template = TEMPLATE

    def __init__(self, wrapped: Any):
        self.init_kwargs: dict[str, Any] = {}
        self.apply_chat_template = wrapped.apply_chat_template

    def __len__(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(256)}

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        assert "return_offsets_mapping" not in options
        if any("\x00" in text for text in texts):
            raise ValueError("null characters")
        return {"input_ids": [[ord(character) for character in text] for text in texts]}


def test_tokenizers_without_offsets_and_their_complaints(path: Path, tokenizer: Any) -> None:
    slow: Any = Slow(tokenizer)
    bad = {"role": "user", "content": "\x00"}
    path.write_text(lines([*ROWS, {"messages": [bad, ROWS[0]["messages"][1]]}]))
    found = samples(path, slow)
    assert "1 of 13 rows left out: cannot be tokenized" in next(found.notes())
    row = found.batch([0])
    assert "".join(map(chr, row.token_ids[0][row.counted[0]])) == "b</>"
    path.write_text(lines([{"text": "some text"}, {"text": "\x00"}, {"text": "more text"}]))
    found = samples(path, slow)
    assert "1 of 3 rows left out: cannot be tokenized" in next(found.notes())
    assert found.batch([0]).token_ids[0].tolist() == list(map(ord, "some textmore text"))
