"""Where nobody watches a bar, lines tell how far something is."""

import pytest

from specdec.core.duration import in_words
from specdec.results import progress
from specdec.results.progress import Progress


def test_lines_tell_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(20, "decode", "text", initial=4) as bar:
        for _ in range(16):
            now[0] += 20
            bar.update()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "decode: 6 of 20 texts, 5 min left"
    assert lines[-1] == "decode: 20 of 20 texts, 0 s left"
    assert len(lines) == 8, "one every half a minute"
    assert bar.left == 0


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "decode", "text") as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (75, "75 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
