"""The texts of `benchmarks/online.py`: code and the English of Python's manual, fresh and not.

The manual is `pydoc topics`, which every Python brings along. Its pages quote each other at length,
so what is fresh is decided paragraph by paragraph: nothing that stands in a fresh prompt was ever
trained on, or stood in a page that the options of `online=distil` were chosen on.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from specdec.core.jsonl import write_jsonl
from specdec.zoo import ZOO_FOLDER
from specdec.zoo.stdlib import training_files

PHASES = ("code", "prose", "code again")
PAGES = sorted(topics)
CHOSEN_ON = PAGES[1::3]
FRESH = PAGES[2::3]


def words_of(text: str) -> str:
    """Return a text without its line breaks and indentation, which differ where pages quote."""
    return " ".join(text.split())


def paragraphs(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the paragraphs of pages, each where it stands first, whatever its indentation."""
    seen = set[str]()
    found: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for text in topics[name].split("\n\n"):
            words = words_of(text)
            if words and words not in seen:
                seen.add(words)
                found[name].append(text)
    return found


def fresh_pages() -> dict[str, list[str]]:
    """Return what stands in fresh pages alone, paragraph by paragraph."""
    return {name: kept for name, kept in paragraphs([*CHOSEN_ON, *FRESH]).items() if name in FRESH}


def write_data(folder: Path) -> tuple[Path, Path]:
    """Write what the verifier is trained on, as much code as prose, and the fresh pages."""
    fresh = fresh_pages()
    left_out = {words_of(text) for page in fresh.values() for text in page}
    prose = [
        "\n\n".join(text for text in page if words_of(text) not in left_out)
        for page in paragraphs(PAGES).values()
    ]
    files = training_files()
    random.Random(0).shuffle(files)
    code: list[str] = []
    for file in files:
        if sum(map(len, code)) < sum(map(len, prose)):
            code.append(file.read_text(encoding="utf-8", errors="replace"))
    both, held_out = folder / "both.jsonl", folder / "held_out.jsonl"
    write_jsonl(both, [{"text": text} for text in [*prose, *code] if text])
    write_jsonl(held_out, [{"text": "\n\n".join(page)} for page in fresh.values()])
    return both, held_out


def fresh_prompts(length: int) -> list[tuple[str, str]]:
    """Return the beginnings of stretches of the fresh pages, and their names, page by page."""
    found: list[tuple[str, str]] = []
    for name, page in fresh_pages().items():
        blocks, number = list(page), 0
        while blocks:
            text = ""
            while blocks and len(text) < length:
                text += blocks.pop(0) + "\n\n"
            if len(text) >= length:
                found.append((f"{name}:{number}", text[:length]))
                number += 1
    return found


def code_prompts(length: int) -> list[tuple[str, str]]:
    """Return the embedded prompts, of modules that nothing was trained on, and their names."""
    rows = map(json.loads, (ZOO_FOLDER / "prompts.jsonl").read_text().splitlines())
    return [(row["id"], row["prompt"][:length]) for row in rows]


def page_of(prompt_id: str) -> str:
    """Return the page or module that a prompt is of; those of one are not independent."""
    return prompt_id.split(":")[0]


def prompts_of(seed: int, num_code: int, num_prose: int, length: int) -> list[dict[str, str]]:
    """Return the prompts of all phases, in order: those of code in an order of the seed's own.

    No two seeds have prompts of prose in common.
    """
    code, prose = code_prompts(length), fresh_prompts(length)
    random.Random(0).shuffle(prose)
    random.Random(seed).shuffle(code)
    own = prose[seed * num_prose : (seed + 1) * num_prose]
    if len(own) < num_prose or len(code) < 2 * num_code:
        raise SystemExit(f"{len(prose)} prompts of prose and {len(code)} of code: too few")
    phases = code[:num_code], own, code[num_code : 2 * num_code]
    return [
        {"id": name, "category": phase, "prompt": text}
        for phase, some in zip(PHASES, phases, strict=True)
        for name, text in some
    ]
