"""What a model takes, and what fits it: `python experiments/describe.py verifier.path=MODEL`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig

from specdec.command.entry import Entry
from specdec.command.tree_fits import Fit, Fits, fits_of
from specdec.core.errors import require
from specdec.core.jsonl import require_writable, write_json
from specdec.lab.description.describe import Description, describe
from specdec.lab.description.lines import Line, in_columns
from specdec.lm import mask
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.mask_picture import pictures

# Two tokens of a prompt, three that were generated.
TOKENS, PROMPT = "ABCDE", 2


def task(config: DictConfig) -> None:
    """Print all of it, and write the numbers where a file is named."""
    check_options(config)
    checkpoint = Checkpoint.of(config.verifier)
    found = describe(
        checkpoint, config.context, config.batch, config.dtype, config.device, config.memory
    )
    fits = fits_of(config) if found.refused is None else None
    print(found)
    if fits is not None:
        print(f"\nproposers and the trees that they can grow\n{in_columns(_fit_lines(fits))}")
    print(f"\n{masks_shown()}")
    if config.output is not None:
        write(Path(config.output), found, fits)


def check_options(config: DictConfig) -> None:
    """Refuse what `describe` does not look at."""
    output = config.output
    is_file = isinstance(output, str) and bool(output) and not Path(output).is_dir()
    require(output is None or is_file, "output", output, "a file, output=description.json")
    if output is not None:
        require_writable(Path(output))
    for name in ("draft", "proposer"):
        path = config[name].path
        good = path is None or (isinstance(path, str) and bool(path))
        require(good, f"{name}.path", path, "a folder or Hub id, or null")


def _fit_lines(fits: Fits) -> Iterator[Line]:
    for proposer, fit in fits.proposers.items():
        yield from zip([proposer, *[""] * 9], _fit_said(fit), strict=False)
    for reason, trees in fits.incomplete.items():
        yield "(without)", f"{', '.join(trees)}: {reason}"


def _fit_said(fit: Fit) -> Iterator[str]:
    if fit.against is not None:
        yield f"does not fit: {fit.against}"
    elif fit.reasons or fit.trees:
        yield ", ".join(fit.trees) or "no tree"
    else:
        yield "one token a step, no tree"
    if fit.needs:
        yield f"needs {fit.needs}"
    for reason, trees in fit.reasons.items():
        yield f"not {', '.join(trees)}: {reason}"


def masks_shown() -> str:
    """Draw what tokens of a prompt and generated ones see."""
    cpu = torch.device("cpu")
    prompt_length = torch.tensor([PROMPT], device=cpu)
    masks = {
        "causal attention": mask.causal([0], len(TOKENS), cpu)[0],
        "attention=prefix_lm": mask.prefix_lm(prompt_length, len(TOKENS))[0],
    }
    prompt, rest = " ".join(TOKENS[:PROMPT]), " ".join(TOKENS[PROMPT:])
    drawn = pictures(masks, TOKENS, PROMPT)
    return f"[{prompt} | {rest}], a prompt and what was generated: a row sees its x\n{drawn}"


def write(path: Path, found: Description, fits: Fits | None) -> None:
    """Write the numbers, and what fits, as JSON."""
    write_json(path, {**found.numbers(), "fits": fits and asdict(fits)})
    print(f"\nwritten: {path}")


ENTRY = Entry(task)
