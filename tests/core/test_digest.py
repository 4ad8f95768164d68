"""Digests are of every byte, and of nothing but what is read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.core import digest as digests
from specdec.core.digest import LARGE, digest, inputs_of, signature


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered yet, in this process or on the disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", {})
    return tmp_path / "cache"


def written(path: Path, content: bytes, age: float = 60.0) -> Path:
    """Write a file that looks as if nobody had touched it for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    times = path.stat().st_mtime - age
    os.utime(path, (times, times))
    return path


@pytest.mark.parametrize("place", [0, 1 << 20, (3 << 20) + 17, (6 << 20) - 1])
def test_every_byte_counts(memory: Path, tmp_path: Path, place: int) -> None:
    file = written(tmp_path / "large.bin", bytes(6 << 20))
    before = digest(file)
    times = file.stat()
    with file.open("r+b") as content:
        content.seek(place)
        content.write(b"\1")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(file) != before


def test_equal_copies_are_equal_wherever_they_lie(memory: Path, tmp_path: Path) -> None:
    written(tmp_path / "one/a.json", b"{}")
    written(tmp_path / "one/deep/b.bin", b"12")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "link")
    (tmp_path / "two/a.json").rename(tmp_path / "two/c.json")
    assert digest(tmp_path / "one") != digest(tmp_path / "two")


def test_a_file_is_read_by_its_kind(memory: Path, tmp_path: Path) -> None:
    contents = [written(tmp_path / name, b"text") for name in ("a.txt", "b.txt", "a.jsonl")]
    found = [digest(file) for file in contents]
    assert found[0] == found[1] != found[2]


def test_what_nobody_reads_decides_nothing(memory: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "model/model.safetensors", b"weights").parent
    before = digest(folder)
    for name in ("README.md", "LICENSE", ".cache/x", "checkpoints/step-1/y", "checkpoint-5/z"):
        written(folder / name, b"more")
        assert digest(folder) == before, name
    written(folder / "chat_template.jinja", b"{{ messages }}")
    assert digest(folder) != before


def test_of_a_run_its_traces_count(memory: Path, tmp_path: Path) -> None:
    for name in ("traces.jsonl", "status.json", "summary.json"):
        written(tmp_path / "run" / name, b"{}")
    assert [file.name for file in inputs_of(tmp_path / "run")] == ["traces.jsonl"]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original: Callable[..., Any] = digests.hashlib.file_digest

    def counting(file: Any, name: str) -> object:
        read.append(name)
        return original(file, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", counting)
    return read


def test_a_large_file_is_read_once_by_all_processes(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "large.bin", bytes(LARGE))
    monkeypatch.setattr(digests, "SETTLED", -1.0)  # as if it had lain there for long
    read = count_reads(monkeypatch)
    first = digest(file)
    assert digest(file) == first
    monkeypatch.setattr(digests, "_known", {})  # another process
    assert digest(file) == first
    assert len(read) == 1


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"of": [], "sha256": "0"}'])
def test_a_damaged_memory_is_no_memory(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    file = written(tmp_path / "large.bin", bytes(LARGE))
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    first = digest(file)
    (noted,) = (memory / "specdec/digests").iterdir()
    noted.write_bytes(damage)
    monkeypatch.setattr(digests, "_known", {})
    assert digest(file) == first


def test_what_has_just_been_written_is_not_remembered(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system may not tell two changes apart that follow each other."""
    file = tmp_path / "fresh.txt"
    file.write_text("one")
    read = count_reads(monkeypatch)
    assert digest(file) == digest(file)
    assert len(read) == 2


def test_without_a_home_nothing_is_remembered_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    assert digest(written(tmp_path / "large.bin", bytes(LARGE)))


def test_a_signature_changes_with_the_files_of_a_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "model/config.json", b"{}").parent
    before = signature(folder)
    assert signature(folder) == before
    written(folder / "more.json", b"{}")
    assert signature(folder) != before
