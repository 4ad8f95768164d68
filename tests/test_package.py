"""The wheel: what is in the checkout and only works there is found here."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.documents import EXTENDING, blocks, commands, titled

ROOT = Path(__file__).parents[1]
WEIGHTS = "specdec/zoo/verifier/model.safetensors"
DEMO = ("-m", "specdec", "compare", "prompts.limit=2", "max_new_tokens=8")


def python(
    *arguments: str, cwd: Path, executable: str | Path = sys.executable, path: Path | None = None
) -> str:
    """Run Python away from the checkout, with `path` first where it looks for packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    cwd.mkdir(exist_ok=True)
    ended = subprocess.run(
        [str(executable), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{' '.join(arguments)}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def tracked_files() -> list[str]:
    """Return what a clone would hold; everything, where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        return [name for name in ended.stdout.split("\0") if name and (ROOT / name).is_file()]
    shipped = ("specdec", "configs", "pyproject.toml", "LICENSE", "README.md")
    paths = [path for name in shipped for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    return [str(path.relative_to(ROOT)) for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that nothing that an earlier build left behind can help."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    python("-m", "pip", "wheel", *options, str(folder / "source"), cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into an empty folder; what it depends on comes from this environment."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--quiet", "--target", str(target)]
    python("-m", "pip", "install", *options, str(wheel), cwd=target)
    return target


def expected(pattern: str, folders: Sequence[str]) -> set[str]:
    """Return the tracked files that a wheel must hold, by their installed names."""
    names = (name for name in tracked_files() if Path(name).match(pattern))
    ours = [name for name in names if name.split("/")[0] in folders]
    return {f"specdec/{name}" if name.startswith("configs/") else name for name in ours}


def test_the_wheel_holds_all_modules_configurations_and_the_licence(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    folders = ("specdec", "configs")
    modules = expected("*.py", folders)
    configs = expected("*.yaml", folders)
    assert "specdec/command/compare.py" in modules
    assert "specdec/configs/proposer/ngram.yaml" in configs
    assert not modules - held, "packages in pyproject.toml must be listed one by one"
    assert not configs - held, "package-data in pyproject.toml misses some"
    assert "specdec/py.typed" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"specdec"}
    assert not [name for name in held if "__pycache__" in name or "test" in Path(name).name]


def test_the_wheel_holds_the_zoo(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    zoo = {name for name in tracked_files() if name.startswith("specdec/zoo/")}
    assert WEIGHTS in zoo, "the weights are not tracked"
    assert not zoo - held, "package-data of specdec.zoo in pyproject.toml misses some"


def test_an_installed_wheel_is_used_and_offers_help(installed: Path, tmp_path: Path) -> None:
    places = python(
        "-c", "import specdec, specdec.configs, specdec.command.launch as app;"
        "print(specdec.__file__, specdec.configs.__file__, app.__file__)",
        cwd=tmp_path / "elsewhere", path=installed,
    )  # fmt: skip
    assert all(place.startswith(str(installed)) for place in places.split()), places
    shown = python("-m", "specdec", "compare", "--help", cwd=tmp_path / "elsewhere", path=installed)
    assert "ngram" in shown, "the configurations are not found"
    assert "Examples:" in shown


def test_an_installed_wheel_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    shown = python(*DEMO, cwd=tmp_path / "elsewhere", path=installed)
    assert "block_efficiency" in shown
    assert list((tmp_path / "elsewhere" / "outputs").rglob("summary.json"))


# The files that each of the plug-ins of docs/extending.md may need, by the heading of its section.
MOST_FILES = {"A proposer": 2, "A rule": 3, "A tree": 3, "A loss": 2, "A kind of heads": 4}


def test_a_plug_in_touches_few_files() -> None:
    """These and no others: `test_plug_ins_of_ones_own_work_with_the_wheel` has nothing else."""
    text = EXTENDING.read_text(encoding="utf-8")
    for heading, most in MOST_FILES.items():
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        files = re.findall(r'^```\w+ title="([^"]+)"$', section, re.MULTILINE)
        assert any(name.endswith(".py") for name in files), heading
        assert any(name.endswith(".yaml") for name in files), heading
        assert len(files) <= most, f"{heading}: {files}"


def test_plug_ins_of_ones_own_work_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    """A package beside an installed wheel: proven, and used from the command line."""
    for name, text in titled(EXTENDING).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    own = [text for text in blocks(EXTENDING, "python") if text not in titled(EXTENDING).values()]
    proofs = [text for text in own if "from specdec.testing import" in text]
    assert len(proofs) == len(MOST_FILES)
    python("-c", "\n".join(proofs), cwd=tmp_path, path=installed)
    for arguments in commands(EXTENDING):
        python("-m", "specdec", *arguments, cwd=tmp_path, path=installed)
    assert list((tmp_path / "linear_heads").glob("*.safetensors"))
    options = ("--config-dir", "conf", "proposer=linear", "proposer.path=linear_heads")
    small = ("tree.gamma=2", "prompts.limit=1", "max_new_tokens=4", "output=decoded")
    python("-m", "specdec", "decode", *options, *small, cwd=tmp_path, path=installed)
    assert list((tmp_path / "decoded").rglob("summary.json"))


@pytest.mark.slow
def test_a_wheel_works_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    """Nothing of this environment helps: every dependency must be declared."""
    venv.create(tmp_path / "venv", with_pip=True)
    executable = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pinned = ["--constraint", str(constraints)] if constraints.exists() else []
    python(
        "-m", "pip", "install", "--quiet", *pinned, str(wheel), cwd=tmp_path, executable=executable
    )
    elsewhere = tmp_path / "elsewhere"
    shown = python("-m", "specdec", "compare", "--help", cwd=elsewhere, executable=executable)
    assert "ngram" in shown
    script = tmp_path / "venv" / "bin" / "specdec-compare"
    assert "ngram" in python(str(script), "--help", cwd=elsewhere, executable=executable)
    assert "block_efficiency" in python(*DEMO, cwd=elsewhere, executable=executable)
