"""What of training data is not trained on, or not as it is: counted by reason, with an example."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from specdec.core.errors import RowError, UserError

REASONS_SHOWN = 12
ROWS_UNTIL_SURE = 1000  # of which none can be used: the rest need not be read

Counts = dict[str, dict[str, Any]]  # by reason: how many, and where the first one stands


@dataclass
class LeftOut:
    """Rows of which nothing is trained on; answers of the others that are not, or not all of them.

    `notes` are of answers that are trained on all the same.
    """

    num_rows: int = 0  # all of them
    num_samples: int = 0
    num_cut: int = 0  # samples that were longer
    rows: Counts = field(default_factory=Counts)
    answers: Counts = field(default_factory=Counts)
    notes: Counts = field(default_factory=Counts)
    first: str = ""  # what the first of all complaints says

    def add_row(self, error: RowError) -> None:
        """Count a row of which nothing can be used."""
        self.first = self.first or str(error)
        _count(self.rows, error.reason, error.where)

    def add_answer(self, error: RowError) -> None:
        """Count an answer of a row that can be used otherwise."""
        self.first = self.first or str(error)
        _count(self.answers, error.reason, error.where)

    def add_note(self, note: str, where: str) -> None:
        """Count an answer that is trained on otherwise than one might think."""
        _count(self.notes, note, where)

    @property
    def num_rows_left_out(self) -> int:
        """How many rows nothing comes of."""
        return _number(self.rows)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many rows are of no use that no other will be."""
        return self.num_rows == self.num_rows_left_out >= ROWS_UNTIL_SURE

    def lines(self) -> Iterator[str]:
        """Say what there is to be said, a line each."""
        if self.rows:
            number = self.num_rows_left_out
            yield f"{number} of {self.num_rows} rows left out: {_listed(self.rows)}"
        if self.answers:
            number = _number(self.answers)
            yield f"{number} answer{_s(number)} left out: {_listed(self.answers)}"
        if self.num_cut:
            yield f"{self.num_cut} of {self.num_samples} samples cut to data.max_length"
        for note, count in self.notes.items():
            number = count["number"]
            yield f"{number} answer{_s(number)} with {note} ({count['first']})"

    def check(self, source: object, strict: bool) -> None:
        """Refuse data of which most is of no use, or with `strict`, anything.

        Raises:
            UserError: `source` is how the message names them.
        """
        if not self.rows and not self.num_samples:
            raise UserError(f"{source}: holds no text; expected rows to train on")
        if strict and self.first:
            raise UserError(f"{self.first}; data.strict=false leaves such rows out")
        if self.num_rows == self.num_rows_left_out == 1:
            raise UserError(f"{source}: {self.first}")
        if 2 * self.num_rows_left_out > self.num_rows or not self.num_samples:
            amount = f"{self.num_rows_left_out} of {self.num_rows} rows cannot be trained on"
            reasons = f": {_listed(self.rows)}" if len(self.rows) > 1 else ""
            raise UserError(f"{source}: {amount}{reasons}; the first: {self.first}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    @classmethod
    def of_json(cls, counts: Mapping[str, Any]) -> "LeftOut":
        """Return what `to_json` wrote."""
        return cls(**counts)


def _count(counts: Counts, reason: str, where: str) -> None:
    found = counts.setdefault(reason, {"number": 0, "first": where})
    found["number"] += 1


def _number(counts: Counts) -> int:
    return sum(each["number"] for each in counts.values())


def _listed(counts: Counts) -> str:
    found = sorted(counts.items(), key=lambda item: -item[1]["number"])
    if len(found) == 1:
        return f"{found[0][0]} ({found[0][1]['first']})"
    listed = [f"{each['number']}: {reason} ({each['first']})" for reason, each in found]
    rest = sum(each["number"] for _, each in found[REASONS_SHOWN:])
    return "; ".join(listed[:REASONS_SHOWN] + ([f"{rest}: other reasons"] if rest else []))


def _s(number: int) -> str:
    return "" if number == 1 else "s"
