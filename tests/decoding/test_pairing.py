"""A rule and candidates that are drawn now in this way and now in that."""

import pytest

from specdec.core.errors import Unfit
from specdec.core.values import Draw
from specdec.decoding.pairing import is_lossless
from specdec.verification.rejection import Rejection

BOTH = frozenset({Draw.DETERMINISTIC, Draw.SINGLE})


class Modest(Rejection):
    """Vouches for copies alone."""

    lossless_for = frozenset({Draw.DETERMINISTIC})


def test_a_text_is_lossless_if_it_is_for_each_of_its_draws() -> None:
    assert is_lossless(Rejection(), BOTH, allow_lossy=True)
    assert is_lossless(Modest(), Draw.DETERMINISTIC, allow_lossy=False)
    assert not is_lossless(Modest(), BOTH, allow_lossy=True)
    with pytest.raises(Unfit, match="not lossless for single candidates"):
        is_lossless(Modest(), BOTH, allow_lossy=False)
