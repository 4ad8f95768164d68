"""The documents that are shipped, and what stands in them: commands, code, links."""

import re
import shlex
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.rglob("*.md")))
EXTENDING = DOCS / "extending.md"


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, those within lists too."""
    fenced = rf'^( *)```{language}(?: title="[^"]*")?\n(.*?)^\1```$'
    found = re.findall(fenced, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [dedent(body) for _, body in found]


def titled(page: Path) -> dict[str, str]:
    """Return the blocks that are files, by their names."""
    fenced = r'^```\w+ title="([^"]+)"\n(.*?)^```$'
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(fenced, text, re.MULTILINE | re.DOTALL))


def command_lines(page: Path) -> list[list[str]]:
    """Return what a shell would run, word by word."""
    joined = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]


def commands(page: Path) -> list[list[str]]:
    """Return our own commands, `specdec NAME` in all of its spellings: name first."""
    return [command for words in command_lines(page) if (command := own(words))]


def own(words: list[str]) -> list[str]:
    """Return the name and the options of one of our commands; nothing for other people's."""
    script = next((n for n, word in enumerate(words) if word.startswith("experiments/")), None)
    if script is not None:  # python, torchrun or accelerate launch
        return [Path(words[script]).stem, *words[script + 1 :]]
    if words[0] == "specdec":
        return words[1:]
    if words[0].startswith("specdec-"):
        return [words[0].removeprefix("specdec-"), *words[1:]]
    return []


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    fenced = r"^( *)```.*?^\1```$"
    return re.sub(fenced, "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links within the repository."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}
