"""The README and docs/: commands can be typed, code runs, links lead somewhere."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

import specdec as sd
from tests.support.documents import (
    DOCS,
    EXTENDING,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    command_lines,
    commands,
    links,
    own,
    titled,
)
from tests.support.marking import thorough
from tests.support.running import CommandLine
from tests.test_architecture import MAY_IMPORT
from tests.test_configs import CONFIGS, ENTRY_POINTS, PACKAGES, require_composed

QUICKSTART = DOCS / "quickstart.md"
ELSEWHERE = ("make", "eval")  # whose own options are not ours
# Pages whose Python is run as it stands; that of EXTENDING is, too, with the files beside it.
WITH_PYTHON = (README, thorough(QUICKSTART), DOCS / "guarantees-and-definitions.md")
DOWNLOADS = "Qwen/"


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 8000


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_line_of_a_shell_block_is_a_known_command(page: Path) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in command_lines(page):
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] not in ELSEWHERE:
            assert [*own(words), ""][0] in ENTRY_POINTS, " ".join(words)


@pytest.mark.whole
@pytest.mark.parametrize(
    "command",
    [command for page in PAGES for command in commands(page) if "--config-dir" not in command],
    ids=lambda command: " ".join(command)[:90],
)
def test_every_command_can_be_typed(command: list[str]) -> None:
    entry_point, *overrides = command
    require_composed(entry_point, overrides)


def test_the_commands_are_found() -> None:
    found = [command for page in PAGES for command in commands(page)]
    assert {command[0] for command in found} == set(ENTRY_POINTS)
    assert len(found) > 50


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        there = page if not target else page.parent / target
        assert there.exists(), f"{named(page)}: {link}"
        assert not anchor or anchor in anchors(there), f"{named(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    folders = r"specdec|configs|experiments|examples|benchmarks|scripts"
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w/])((?:{folders})/[a-z0-9_/]+\.[a-z]+)", text):
        assert (ROOT / name).is_file(), f"{named(page)}: {name}"


def test_links_within_docs_stay_there() -> None:
    """The site holds nothing else."""
    for page in PAGES[1:]:
        for link in links(page):
            assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS), link


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES[1:]}


def test_every_plug_in_and_experiment_is_named() -> None:
    documented = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for group in (*PACKAGES, "experiment"):
        for path in (CONFIGS / group).glob("*.yaml"):
            assert f"`{path.stem}`" in documented, f"no page names {group}={path.stem}"
            assert f"`{path.stem}`" in README.read_text(encoding="utf-8"), f"{group}={path.stem}"


def test_the_table_of_packages_is_complete() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| package | holds |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(MAY_IMPORT)


def test_every_public_name_is_in_the_reference_once() -> None:
    expand: Any = runpy.run_path(str(ROOT / "scripts" / "reference_pages.py"))["on_page_markdown"]
    pages = [expand(page.read_text(encoding="utf-8")) for page in (DOCS / "reference").glob("*.md")]
    found = re.findall(r"^::: specdec\.(\w+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(found) == sorted(name for name in dir(sd) if not name.startswith("_"))


def test_no_document_names_a_place_of_some_machine() -> None:
    shipped = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specdec/**/*.md")]
    shipped += [*ROOT.glob("*.cff"), *ROOT.glob(".github/**/*.*"), *ROOT.glob("*.yml")]
    for path in shipped:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.~)])/(work|root|home|tmp|opt|usr|mnt)/", text), named(path)


# --- What runs ---


@pytest.mark.whole
@pytest.mark.usefixtures("empty_folder", "fresh_accelerator")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_the_code_of_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(block, namespace)
    printed = capsys.readouterr().out
    assert "print(" not in "".join(blocks(page, "python")) or printed


def type_in(cli: CommandLine, page: Path) -> None:
    for entry_point, *options in commands(page):
        if DOWNLOADS not in " ".join(options):
            ended = cli(entry_point, *options)
            assert ended.status == 0, f"{entry_point} {' '.join(options)}\n{ended.err}"


@pytest.mark.thorough
@pytest.mark.whole
@pytest.mark.usefixtures("empty_folder", "fresh_accelerator")
def test_the_quickstart_can_be_typed_in(cli: CommandLine) -> None:
    type_in(cli, QUICKSTART)
    assert list(Path("first_heads").glob("*.safetensors"))
    assert list(Path("outputs/first_sweep").rglob("report.html"))


@pytest.mark.thorough
@pytest.mark.whole
@pytest.mark.usefixtures("fresh_accelerator")
def test_plug_ins_from_outside_work_as_described(
    cli: CommandLine, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in titled(EXTENDING).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(empty_folder))
    for block in blocks(EXTENDING, "python"):
        exec(block, {"__name__": "mylab.notebook"})
    type_in(cli, EXTENDING)
    runs = {path.parent.name for path in Path("outputs/repeat_vs_gamma").rglob("status.json")}
    assert any(run.startswith("repeat,gamma=2") for run in runs)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sd.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    assert dated[0] == (citation["version"], str(citation["date-released"]))
