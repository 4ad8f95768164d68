"""Names of arms and settings: few words, digests of a few digits, and no two alike."""

import pytest

from specdec.report.labels import distinct_labels, part, rounded, rounded_apart, with_short_counts


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (4, "4"),
        (0.7, "0.7"),
        (9_999, "9999"),
        (194_131, "194 k"),
        (102_200, "102 k"),
        (12_345, "12.3 k"),
        (999_600, "1 M"),
        (4.25e9, "4.25 G"),
    ],
)
def test_large_numbers_have_three_digits(number: float, text: str) -> None:
    assert rounded(number) == text


def test_numbers_that_differ_never_look_alike() -> None:
    assert rounded_apart([194_131, 291_200]) == ["194 k", "291 k"]
    assert rounded_apart([194_131, 194_402]) == ["194131", "194402"]
    assert rounded_apart([16, 194_131, 194_402]) == ["16", "194131", "194402"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("proposer", "ngram", "ngram"),
        ("tree.gamma", 4, "gamma=4"),
        ("content of verifier.path", "c0b9819d5ea3214c", "verifier c0b981"),
        ("content of prompts.path", None, "prompts unknown"),
        ("recording", "recordings/mine", "replayed from recordings/mine"),
        ("recording", None, "decoded"),
    ],
)
def test_an_option_is_said_in_few_words(name: str, value: object, text: str) -> None:
    assert part(name, value) == text


NAMES = ("proposer", "training.max_steps", "training.tokens", "proposer.path")


def trained(steps: int, tokens: int | None = None, path: str = "a") -> dict[str, object]:
    found = {"proposer": "medusa", "training.max_steps": steps, "proposer.path": path}
    return found if tokens is None else {**found, "training.tokens": tokens}


def labels(*arms: dict[str, object]) -> list[str]:
    return distinct_labels(with_short_counts(arms), NAMES)


def test_trainings_are_named_by_their_tokens() -> None:
    short = ["medusa, tokens=194 k", "medusa, tokens=291 k"]
    assert labels(trained(400, 194_131), trained(600, 291_200)) == short
    assert labels(trained(400), trained(600)) == ["medusa, max_steps=400", "medusa, max_steps=600"]


def test_what_tokens_do_not_tell_apart_has_a_longer_name() -> None:
    assert labels(trained(4, 60, "a"), trained(4, 60, "b")) == [
        "medusa, tokens=60, path=a",
        "medusa, tokens=60, path=b",
    ]
    assert labels(trained(4, 60), trained(8, 60)) == [
        "medusa, max_steps=4, tokens=60, path=a",
        "medusa, max_steps=8, tokens=60, path=a",
    ]
