"""Objects are told apart by all that they do, and are the same where they do the same."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specdec.core.errors import UserError
from specdec.lab.described import described
from specdec.training.loss.kl import KL
from specdec.training.loss.lk import LK


class Loss:
    """Holds whatever it is given."""

    def __init__(self, **held: Any):
        self.__dict__.update(held)


@dataclass(slots=True)
class Slotted:
    alpha: float


def closing(alpha: float) -> Callable[[float], float]:
    return lambda x: alpha * x


def class_of(alpha: float) -> type:
    return type("Made", (), {"alpha": alpha, "__module__": __name__})


UNLIKE: dict[str, tuple[Any, Any]] = {
    "numbers": (Loss(alpha=1.0), Loss(alpha=2.0)),
    "ours": (KL(), LK()),
    "options of ours": (LK(3.0), LK(2.0)),
    "slots": (Slotted(1.0), Slotted(-5.0)),
    "closures": (closing(1.0), closing(2.0)),
    "held closures": (Loss(f=closing(1.0)), Loss(f=closing(2.0))),
    "arrays": (Loss(w=np.array([1, 2])), Loss(w=np.array([7, 7]))),
    "tensors": (Loss(w=torch.ones(3000)), Loss(w=torch.zeros(3000))),
    "half precision": (torch.ones(2).bfloat16(), torch.zeros(2).bfloat16()),
    "types": (torch.ones(2), torch.ones(2).double()),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "class attributes": (class_of(1.0)(), class_of(2.0)()),
    "sets": ({1, 2}, {1, 3}),
    "lists": ([1, [2]], [1, [3]]),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_unlike_is_told_apart(name: str) -> None:
    one, other = UNLIKE[name]
    assert described(one) != described(other)
    assert described(one) == described(one)


def test_what_holds_itself_has_an_end() -> None:
    loss = Loss()
    vars(loss)["own"] = loss
    assert described(loss)


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be told from another one"):
        described(Loss(held=object()))


SCRIPT = """
from specdec.lab.described import described
ALPHA = {alpha}
def scaled(x): return ALPHA * x
class Mine:
    kinds = ("a", "b")
    def __call__(self, x): return scaled(x) if x in {{"p", "q", "r"}} else {beta}
print(described(Mine()))
"""


RUN_ALL = "import runpy, sys\nfor each in sys.argv[1:]: runpy.run_path(each, run_name='__main__')"


@pytest.mark.whole
@pytest.mark.thorough
def test_a_class_of_a_script_is_known_by_what_it_does(tmp_path: Path) -> None:
    """Of a module without a name, in processes that order sets in their own ways."""
    scripts = list[str]()
    for number, (alpha, beta) in enumerate(((1.0, 2.0), (1.0, 3.0), (5.0, 2.0), (1.0, 2.0))):
        scripts.append(str(tmp_path / f"{number}.py"))
        Path(scripts[-1]).write_text(SCRIPT.format(alpha=alpha, beta=beta))
    once, again = (
        subprocess.run(
            [sys.executable, "-c", RUN_ALL, *scripts],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout.splitlines()
        for seed in ("1", "2")
    )
    assert once == again
    assert once[0] == once[3], "wherever it stands"
    assert len(set(once)) == 3
