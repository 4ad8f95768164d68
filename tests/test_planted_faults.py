"""The list of faults to plant follows the product."""

import pytest

from tests.planted_faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.file)
def test_a_fault_can_be_planted_in_one_place(fault: Fault) -> None:
    text = (ROOT / "specdec" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1, "the product was written anew: write the fault anew"
    assert fault.new != fault.old
