"""Kernels say what float64 says, to rounding, for all sizes; with any processor's instructions."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from specdec.runtime.kernels import build
from specdec.runtime.kernels.operators import have_kernels, linear_operator, thin_attention

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="kernels take a C++ compiler")


@pytest.fixture(autouse=True)
def kernels() -> None:
    assert have_kernels(torch.float32, CPU)


def drawn(*size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    size = ROUNDING[found.dtype]
    return torch.allclose(found.double(), expected, rtol=size, atol=size)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("num_outputs", "size"), [(48, 64), (50, 33), (16, 1), (3, 70), (1, 16)])
def test_products_are_those_of_torch(num_outputs: int, size: int, dtype: torch.dtype) -> None:
    weight, bias = drawn(num_outputs, size, dtype=dtype), drawn(num_outputs, dtype=dtype)
    for rows in (1, 2, 3, 4, 5, 9, 17, 48, 49):
        x = drawn(rows, size, dtype=dtype)
        expected = linear(x.double(), weight.double())
        scale = expected.abs().max()
        assert close(linear_operator()(x, weight, None) / scale, expected / scale)
        found = linear_operator()(x, weight, bias)
        assert close(found / scale, (expected + bias.double()) / scale)


@pytest.mark.parametrize("dtype", TYPES)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    x, weight = drawn(8, 5, dtype=dtype).t(), drawn(8, 20, dtype=dtype).t()
    bias = drawn(1, dtype=dtype).expand(20)
    expected = linear(x.double(), weight.double(), bias.double())
    assert close(linear_operator()(x, weight, bias), expected)


@pytest.mark.parametrize("num_outputs", [3, 16])
def test_bfloat16_is_rounded_to_the_nearest_and_halves_to_even(num_outputs: int) -> None:
    added = torch.arange(-64, 64) / 256  # half a unit in the last place of 1, and less below it
    x = torch.stack([torch.ones(128), added], dim=1).bfloat16()
    expected = (1 + added).bfloat16()[:, None].expand(-1, num_outputs)
    for some in (slice(0, 48), slice(48, 96), slice(96, 128)):
        found = linear_operator()(x[some], torch.ones(num_outputs, 2).bfloat16(), None)
        assert torch.equal(found, expected[some])


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    x, weight = torch.ones(4, 32, dtype=dtype), torch.ones(32, 32, dtype=dtype)
    x[0, 0], x[1, 0], x[2, 0] = torch.nan, torch.inf, -torch.inf
    found = linear_operator()(x, weight, None)
    assert found[0].isnan().all()
    assert found[1:3, 0].tolist() == [torch.inf, -torch.inf]
    assert (found[3] == 32).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mask_heads", [1, 4])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("num_new", "length", "dim", "value_dim"),
    [(1, 1, 8, 8), (2, 3, 16, 16), (3, 33, 24, 7), (5, 40, 80, 80), (17, 64, 64, 128)],
)
def test_attention_is_that_of_torch(
    num_new: int,
    length: int,
    dim: int,
    value_dim: int,
    key_heads: int,
    mask_heads: int,
    dtype: torch.dtype,
) -> None:
    query = drawn(2, num_new, 4, dim, dtype=dtype).transpose(1, 2)
    # Buffers hold more cells than are in sight.
    key = drawn(2, key_heads, length + 3, dim, dtype=dtype)[:, :, :length]
    value = drawn(2, key_heads, length + 3, value_dim, dtype=dtype)[:, :, :length]
    hidden = drawn(2, mask_heads, num_new, length, dtype=torch.float32) < -0.5
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    copies = 4 // key_heads
    expected = scaled_dot_product_attention(
        query.double(),
        key.double().repeat_interleave(copies, 1),
        value.double().repeat_interleave(copies, 1),
        mask.double(),
        scale=0.3,
    )
    found = thin_attention(query, key, value, mask, 0.3)
    assert close(found, expected.transpose(1, 2))


def test_weights_are_exact_far_from_the_highest_score() -> None:
    """Down to where float32 has no more numbers, and with scores that are large themselves."""
    query = torch.tensor([1.0, 3e4]).view(1, 1, 2, 1)
    key = -torch.arange(100.0).view(1, 1, 100, 1)
    value, mask = torch.eye(100)[None, None], torch.zeros(1, 1, 2, 100)
    found = thin_attention(query, key, value, mask, 1.0)[0, :, 0].double()
    expected = (query * key.transpose(2, 3))[0, 0].double().softmax(-1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-37)


def test_what_does_not_fit_is_refused() -> None:
    """Kernels read memory where they are told to."""
    x, weight = torch.ones(2, 8), torch.ones(4, 8)
    for wrong in ((x, torch.ones(4, 9), None), (x, weight.bfloat16(), None), (x, weight, x[0])):
        with pytest.raises(RuntimeError, match="fit"):
            linear_operator()(*wrong)
    with pytest.raises(RuntimeError, match="expected float32 or bfloat16"):
        linear_operator()(x.double(), weight.double(), None)
    query, key, mask = torch.ones(1, 2, 3, 8), torch.ones(1, 1, 5, 8), torch.ones(1, 1, 3, 5)
    for wrong in ((key, key, mask[..., :4]), (key, key[:, :, :4], mask), (key[..., :7], key, mask)):
        with pytest.raises(RuntimeError, match="do not fit"):
            thin_attention(query, *wrong, 1.0)
    with pytest.raises(RuntimeError, match="types differ"):
        thin_attention(query, key, key, mask.bfloat16(), 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_they_are_right_with_the_instructions_of_older_processors(
    capability: str, tmp_path: Path
) -> None:
    chosen = ("products", "attention_is", "no_number", "far_from")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        [*command, "-k", " or ".join(chosen)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert len(list((tmp_path / "specdec" / "kernels").iterdir())) == 1


def test_flags_are_those_of_the_processor() -> None:
    assert list(build.processor_flags("DEFAULT")) == list(build.processor_flags("SVE256")) == []
    assert "-mavx2" in build.processor_flags("AVX2")
    assert "-mavx512f" not in build.processor_flags("AVX2")
    assert "-mavx512f" in build.processor_flags("AVX512_BF16")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return an empty cache, and forget what was built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_kernels.cache_clear()
    yield tmp_path
    build.load_kernels.cache_clear()


def test_a_compiler_that_fails_is_quoted(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = anew / "broken"
    broken.write_text("#!/bin/sh\necho 'lanes.h:1: error: no vectors' >&2; exit 1")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert build.load_kernels() == f"{broken}: lanes.h:1: error: no vectors"
    assert not list((anew / "specdec" / "kernels").iterdir()), "nothing is left behind"


def test_without_a_compiler_there_are_none(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert build.load_kernels() == "no C++ compiler is installed here"
