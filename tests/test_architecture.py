"""Who may import whom, kept by walking the syntax trees: a layer that leaks is a failing test."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPECDEC = ROOT / "specdec"
# The packages of specdec that a package may import besides itself; imports run one way:
# core <- {lm <- heads, tree, verification} <- proposer <- ... <- experiments.
MAY_IMPORT = {
    "core": set(),
    "runtime": {"core"},
    "cache": {"core"},  # policies as options name them; models in lm do what they say
    "lm": {"core", "zoo", "runtime", "cache"},
    "tree": {"core"},
    "verification": {"core"},
    "heads": {"core", "lm"},
    # Tree policies and rules reach a proposer and the loop through the protocols of core.
    "proposer": {"core", "lm", "heads", "proof", "runtime"},
    "proof": {"core"},
    "prompts": {"core", "zoo"},
    "decoding": {"core", "lm", "proof", "prompts", "runtime"},
    "metrics": {"core"},
    "zoo": {"core"},
    "results": {"core", "metrics"},
    "report": {"core", "metrics", "results"},
    "recording": {"core", "lm", "decoding", "metrics"},
    "calibration": {
        *("core", "lm", "heads", "tree", "verification", "recording", "replaying", "training"),
    },
    "pacing": {"core", "replaying", "tree"},
    "replaying": {
        *("core", "lm", "heads", "tree", "verification", "proof", "decoding", "metrics"),
        "recording",
    },
    "training": {
        *("core", "lm", "heads", "prompts", "proposer", "verification", "decoding", "metrics"),
        *("results", "recording", "replaying", "tree", "zoo", "runtime"),
    },
    "online": {"core", "lm", "heads", "training"},
    # For authors of plug-ins; nothing of ours needs it.
    "testing": {
        *("core", "lm", "heads", "proof", "proposer", "decoding", "verification", "tree"),
        "training",
    },
    "lab": {
        *("core", "lm", "heads", "prompts", "proposer", "tree", "verification", "decoding"),
        *("metrics", "results", "recording", "calibration", "replaying", "training", "report"),
        *("zoo", "runtime", "cache", "online"),
    },
    "notebook": {
        *("core", "lm", "heads", "prompts", "proposer", "tree", "verification", "decoding"),
        *("metrics", "results", "recording", "training", "report", "lab"),
    },
    "command": {
        *("core", "lm", "heads", "prompts", "proposer", "tree", "verification", "decoding"),
        *("metrics", "results", "recording", "calibration", "replaying", "training", "report"),
        *("lab", "version"),
    },
}
# Other people's packages, where they are restricted at all.
THIRD_PARTY = {
    "core": {"torch", "numpy"},
    "tree": {"torch"},
    "verification": {"torch"},
    "proof": {"torch"},
    "decoding": {"torch"},
    "metrics": {"numpy", "scipy"},
}
# The folders that know what a DictConfig is: the rest gets typed values.
CONFIGURED = ("specdec/command", "scripts/build_zoo.py", "scripts/build_datastore.py")
# `instantiate` is how the laboratory calls what a `_target_` names; it knows no configuration.
CALLS = {"specdec/lab/part.py": {"hydra.errors.InstantiationException", "hydra.utils.instantiate"}}


@dataclass(frozen=True)
class Import:
    """One imported module, with the line that imports it."""

    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.module}"


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> list[Import]:
    """Find all imports of a file: those inside functions and for type checkers too."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [Import(path, node.lineno, module) for module in modules]
    return found


def packages() -> list[str]:
    inits = (path.relative_to(SPECDEC) for path in SPECDEC.rglob("__init__.py"))
    return sorted({path.parts[0] for path in inits if len(path.parts) > 1})


def modules_of(package: str) -> Iterator[Import]:
    for path in sources(f"specdec/{package}"):
        yield from imports(path)


def first(module: str) -> str:
    return module.split(".")[0]


def test_every_package_has_its_place() -> None:
    assert packages(), "no packages found: the test is blind"
    unknown = set(packages()) - MAY_IMPORT.keys()
    assert not unknown, f"say in MAY_IMPORT what {sorted(unknown)} may import"


@pytest.mark.parametrize("package", packages())
def test_imports_run_one_way(package: str) -> None:
    allowed = MAY_IMPORT.get(package, set()) | {package}
    ours = [found for found in modules_of(package) if first(found.module) == "specdec"]
    wrong = [str(found) for found in ours if (found.module + ".").split(".")[1] not in allowed]
    assert not wrong, f"{package} may import {sorted(allowed)} of specdec only"


@pytest.mark.parametrize("package", sorted(THIRD_PARTY))
def test_the_inner_packages_need_little(package: str) -> None:
    allowed = THIRD_PARTY[package] | set(sys.stdlib_module_names) | {"specdec"}
    wrong = [str(found) for found in modules_of(package) if first(found.module) not in allowed]
    assert not wrong, f"{package} may need the standard library and {THIRD_PARTY[package]} only"


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_the_configuration_stops_at_the_door(library: str) -> None:
    wrong = [
        str(each)
        for path in sources("specdec", "experiments", "scripts")
        for each in imports(path)
        if first(each.module) == library
        and not path.relative_to(ROOT).as_posix().startswith(CONFIGURED)
        and each.module not in CALLS.get(path.relative_to(ROOT).as_posix(), ())
    ]
    assert not wrong, "specdec/command reads configurations; all others take typed values"


def test_nothing_imports_tests_scripts_or_benchmarks() -> None:
    names = {path.stem for path in sources("tests")} - {"__init__"}
    outside = {"tests", "scripts", "benchmarks", "pytest", "conftest"} | names
    wrong = [
        str(each)
        for path in sources("specdec", "experiments", "scripts")
        for each in imports(path)
        if first(each.module) in outside
    ]
    assert not wrong, "what is shipped must not need what is not"


def test_nothing_imports_a_folder_of_the_checkout() -> None:
    """`import configs` works in the checkout only; in the wheel it is specdec.configs."""
    wrong = [
        str(each)
        for path in sources("specdec", "experiments", "scripts", "tests")
        for each in imports(path)
        if first(each.module) in {"experiments", "configs"}
    ]
    assert not wrong


def test_no_module_shadows_another() -> None:
    """`python experiments/x.py` puts experiments/ first on the path: names there must be free."""
    taken = set(sys.stdlib_module_names) | {"hydra"}
    everywhere = [path.stem for path in sources("specdec", "experiments", "scripts")]
    assert "hydra" not in everywhere, "a module called hydra shadows the library"
    scripts = {path.stem for path in sources("experiments", "scripts")} - {"__init__"}
    assert not scripts & taken, f"{scripts & taken} would shadow a standard module"


def test_no_complaint_is_silenced() -> None:
    # Put together here, so that this file does not find itself.
    patterns = ["type" + r":\s*ignore", "no" + "qa", "pyright" + r":\s*ignore"]
    silenced = re.compile("#.*(" + "|".join(patterns) + ")", re.IGNORECASE)
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources("specdec", "experiments", "scripts")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if silenced.search(line)
    ]
    assert not wrong, "mend what the tool complains of, or drop the rule for all"


def test_no_exception_is_swallowed_unnamed() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("specdec", "experiments", "scripts")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not wrong, "a bare except also catches Ctrl-C"


def test_the_text_is_ascii() -> None:
    files = sources("specdec", "experiments", "scripts", "tests")
    files += sorted((ROOT / "configs").rglob("*.yaml"))
    wrong = [str(path.relative_to(ROOT)) for path in files if not path.read_bytes().isascii()]
    assert not wrong


def test_the_wheel_lists_every_package() -> None:
    """An explicit list forgets nothing by accident only if something checks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SPECDEC.rglob("__init__.py")}
    mapped = settings["package-dir"]
    assert mapped == {"specdec.configs": "configs"}
    assert set(settings["packages"]) == found | mapped.keys()
    assert settings["packages"] == sorted(settings["packages"])


# Where files may be written without the help of `core/jsonl.py`, and why.
WRITERS = {
    "specdec/core/jsonl.py",  # which is that help
    "specdec/core/digest.py",  # a memory that may be lost, below the user's cache
    "specdec/proposer/datastore.py",  # files that are mapped, within `replacing_file`
    "specdec/results/peak_memory.py",  # a file of the kernel's
    "specdec/runtime/kernels/build.py",  # a library, moved; where it cannot, runs go without
    "specdec/training/checkpoints.py",  # folders, within `refused_writes`
    "specdec/training/data/state_cache.py",  # a file that is mapped, within `writing`
    "specdec/training/data/token_store.py",  # likewise, and believed by its checksum only
}
WRITING = re.compile(
    r"\.(mkdir|write_text|write_bytes)\(|os\.(replace|rename|mkdir|makedirs)\(|open\([^)]*[\"'][wax]b?[\"']"
)


def test_files_are_written_in_one_way() -> None:
    """Else a full disk is a traceback, and a crash leaves half a file."""
    files = [*sources("specdec"), *sources("experiments")]
    found = {
        str(path.relative_to(ROOT))
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if WRITING.search(line) and "os.devnull" not in line
    }
    assert found == WRITERS


def test_every_entry_point_has_a_console_script() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = project["project"]["scripts"]
    commands = [path.stem for path in sources("experiments")]
    expected = {f"specdec-{name}": f"specdec.command.doors:{name}" for name in commands}
    expected["specdec"] = "specdec.__main__:main"
    assert scripts == expected


def test_doors_hold_nothing() -> None:
    for path in sources("experiments"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 10, path
