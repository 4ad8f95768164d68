"""What `specdec` takes of scipy.stats, which comes without types; the rest is what it is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Numbers = Sequence[float] | NDArray[Any]

class _Distribution:
    def cdf(self, x: NDArray[np.float64]) -> NDArray[np.float64]: ...
    def sf(self, x: float, df: float = ...) -> float: ...
    def isf(self, q: float, df: float = ...) -> float: ...

class _Found:
    statistic: float
    pvalue: float

chi2: _Distribution
kstwobign: _Distribution
t: _Distribution
uniform: _Distribution

def chisquare(f_obs: _Numbers, f_exp: _Numbers = ...) -> _Found: ...
def ks_1samp(
    x: NDArray[np.float64],
    cdf: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    method: str = ...,
) -> _Found: ...
def __getattr__(name: str) -> Any: ...
