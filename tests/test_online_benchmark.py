"""The texts that `benchmarks/online.py` measures on are fresh."""

import json
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHORT = 60  # characters: headings and the like stand everywhere


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("online_texts")


def test_nothing_fresh_is_trained_on_or_was_chosen_on(texts: Any, tmp_path: Path) -> None:
    """Pages quote each other: `compound` holds all of `try`."""
    both, held_out = texts.write_data(tmp_path)
    trained = texts.words_of(" ".join(json.loads(row)["text"] for row in both.open()))
    chosen_on = texts.words_of(" ".join(topics[name] for name in texts.CHOSEN_ON))
    fresh = [text for page in texts.fresh_pages().values() for text in page]
    words = [texts.words_of(text) for text in fresh]
    assert sum(map(len, words)) > 80_000
    assert len(set(words)) == len(words)
    for paragraph in words:
        if len(paragraph) > SHORT:
            assert paragraph not in trained
            assert paragraph not in chosen_on
    held_out_words = texts.words_of(" ".join(json.loads(row)["text"] for row in held_out.open()))
    assert all(paragraph in held_out_words for paragraph in words)


def test_no_two_seeds_have_prose_in_common(texts: Any) -> None:
    by_seed = [texts.prompts_of(seed, 8, 36, 600) for seed in range(5)]
    prose = [row["prompt"] for rows in by_seed for row in rows if row["category"] == "prose"]
    assert len(set(prose)) == len(prose) == 5 * 36
    for rows in by_seed:
        assert len({row["id"] for row in rows}) == len(rows) == 8 + 36 + 8
        assert [row["category"] for row in rows] == sorted(
            (row["category"] for row in rows), key=texts.PHASES.index
        )
    with pytest.raises(SystemExit, match="too few"):
        texts.prompts_of(5, 8, 36, 600)
