"""The code of plug-ins from elsewhere: every line of theirs, and none of others."""

import importlib
import sys
from pathlib import Path

import pytest

from specdec.core.plug_ins import code_digest, is_ours, plug_in_name
from tests.support.importing import forget_modules

MODULES = {
    "ownlab/__init__.py": "",
    "ownlab/draft.py": (
        "import json\nimport numpy\nimport own_helper\nfrom . import tables\n"
        "from specdec.proposer.ngram import NGram\n\n\nclass Mine(NGram):\n    pass\n\n\n"
        "def build():\n    import ownlab.late\n    return Mine\n"
    ),
    "ownlab/tables.py": "from ownlab.deep.more import X\n",
    "ownlab/deep/__init__.py": "",
    "ownlab/deep/more.py": "X = 1\n",
    "ownlab/late.py": "Y = 1\n",
    "ownlab/unused.py": "Z = 1\n",
    "own_helper.py": "W = 1\n",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package, and a module beside it, that can be imported from a folder."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"ownlab/unused.py"}))
def test_every_file_that_is_imported_counts(lab: Path, name: str) -> None:
    before = code_digest("ownlab.draft.Mine")
    with (lab / name).open("a") as file:
        file.write("# another line\n")
    forget_modules(lab)
    assert code_digest("ownlab.draft.Mine") != before


def test_nothing_else_does(lab: Path) -> None:
    before = code_digest("ownlab.draft.Mine")
    (lab / "ownlab/unused.py").write_text("Z = 2\n")
    (lab / "ownlab/notes.txt").write_text("a note")
    forget_modules(lab)
    assert code_digest("ownlab.draft.Mine") == before
    assert code_digest("ownlab.draft.build") == before, "of a module, whichever class is built"


def test_the_code_is_that_which_this_process_runs(lab: Path) -> None:
    """A file that is edited while a sweep is at work is not what the sweep's jobs run."""
    before = code_digest("ownlab.draft.Mine")
    (lab / "own_helper.py").write_text("W = 2\n")
    assert code_digest("ownlab.draft.Mine") == before


def test_the_place_does_not_matter(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = code_digest("ownlab.draft.Mine")
    other = tmp_path_factory.mktemp("other") / "place"
    lab.rename(other)
    forget_modules(lab)
    sys.path.insert(0, str(other))
    try:
        assert code_digest("ownlab.draft.Mine") == before
    finally:
        sys.path.remove(str(other))
        other.rename(lab)


def test_what_cannot_be_imported_has_none(lab: Path) -> None:
    (lab / "ownlab/broken.py").write_text("def (:\n")
    (lab / "ownlab/exits.py").write_text("raise SystemExit(3)\n")
    for target in ("ownlab.broken.Mine", "ownlab.exits.Mine", "no_such_lab.Mine", "Mine"):
        assert code_digest(target) is None


def test_ours_is_told_by_version_not_by_digest() -> None:
    assert code_digest("specdec.proposer.ngram.NGram") is None
    assert is_ours("specdec.proposer.ngram.NGram")
    assert not is_ours("specdec_lab_of_mine.ngram.NGram")
    assert plug_in_name("specdec.verification.block.Block") == "block"
    assert plug_in_name("mine.block.Block") == "mine.block.Block"


@pytest.mark.parametrize("value", [1, 2])
def test_a_test_finds_the_module_that_it_wrote(
    value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one of this name that the test before it wrote and imported."""
    (tmp_path / "own_module.py").write_text(f"VALUE = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert value == importlib.import_module("own_module").VALUE
