"""Kernels in C++, built for the processor at hand and kept in the user's cache."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from specdec.core.cache_folder import cache_folder
from specdec.core.digest import digest_of
from specdec.core.errors import first_line

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent
OPERATORS = HERE / "operators.cpp"
COMPILERS = ("g++", "clang++", "c++")
ALWAYS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
BFLOAT16 = "-mavx512bf16"


def compiler() -> str | None:
    """Return the C++ compiler that is there; None: there is none."""
    compilers = (os.environ.get("CXX", COMPILERS[0]), *COMPILERS)
    return next((each for each in compilers if shutil.which(each)), None)


@lru_cache
def load_kernels() -> str | None:
    """Make `torch.ops.specdec` known; returns why it cannot be, None: it is.

    What is built is named by what it is built from, so that another processor, or another torch,
    never runs it.
    """
    found = compiler()
    if found is None:
        return "no C++ compiler is installed here"
    command = [found, *ALWAYS, *processor_flags(torch.backends.cpu.get_cpu_capability())]
    library = cache_folder("kernels") / f"{_digest(command)}.so"
    try:
        if not library.is_file():
            _build(command, library)
        torch.ops.load_library(library)
    except subprocess.CalledProcessError as problem:
        return f"{found}: {_first_error(problem.stderr)}"
    except OSError as problem:
        return first_line(problem)
    return None


def processor_flags(capability: str) -> Sequence[str]:
    """Return which instructions a compiler may use, given those that torch's kernels use."""
    if capability.startswith("AVX512"):
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported()
        return (*AVX512, BFLOAT16) if has_bfloat16 else AVX512
    return AVX2 if capability == "AVX2" else ()


def _digest(command: Sequence[str]) -> str:
    sources = [each.read_text() for each in sorted(HERE.iterdir()) if each.suffix in (".h", ".cpp")]
    return digest_of("\0".join([torch.__version__, *command, *sources]).encode())


def _build(command: Sequence[str], library: Path) -> None:
    """Compile aside, then move: other processes may do the same."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        files = [f"-I{TORCH / 'include'}", str(OPERATORS), "-o", str(made)]
        linked = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, *files, *linked], check=True, capture_output=True, text=True)
        made.replace(library)


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it failed"]
    return next((line for line in lines if "error" in line), lines[0])
