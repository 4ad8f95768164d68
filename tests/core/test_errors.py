"""What complaints say of the errors of others."""

import pytest

from specdec.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such thing\nmore of it"), "no such thing"),
        (ValueError("\n  first\nsecond"), "first"),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch\n\tanother"),
         "Error(s) in loading: size mismatch"),
        (RuntimeError("nothing follows:"), "nothing follows:"),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_an_error_is_told_in_one_line(error: Exception, said: str) -> None:
    assert first_line(error) == said
