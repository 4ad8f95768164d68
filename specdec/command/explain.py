"""Tell one text step by step: `python experiments/explain.py proposer=draft_model`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.command.entry import Entry
from specdec.command.options import arm_spec
from specdec.core.errors import require, require_int
from specdec.core.escapes import unescaped
from specdec.core.jsonl import require_writable, write_text
from specdec.decoding.request import Request
from specdec.lab.arm import Arm, build_arm
from specdec.lab.checks import check_options as check_arm_options
from specdec.lab.explanation.explain import Names, explain
from specdec.lab.inputs import require_models, require_prompts
from specdec.lab.spec import ArmSpec
from specdec.prompts import Message, Prompt
from specdec.report.page import explanation_page
from specdec.results.explanation import Explanation
from specdec.results.explanation_file import FILE, save

PAGE = "explanation.html"
# What a run directory is written with; here is none.
OF_A_RUN: Mapping[str, Any] = {"tracker": "jsonl", "keep_candidates": 0, "resume": True}


def task(config: DictConfig) -> None:
    """Decode, print what happened, and write a page where a folder is named."""
    check_options(config)
    spec = _spec(config)
    check_arm_options(spec)
    require_models(spec)
    if config.prompt is None:
        require_prompts(spec.prompts, spec.verifier)
    arm = build_arm(spec, spec.verifier.build())
    names = Names(spec.verifier.path, spec.proposer.name, spec.tree.name, spec.rule.name)
    found = explain(arm.decoder, _request(arm, spec, config.prompt), names, config.top)
    print(found)
    if config.output is not None:
        write(Path(config.output), found)


def check_options(config: DictConfig) -> None:
    """Refuse what is no text, no number or no folder."""
    prompt, output = config.prompt, config.output
    require(prompt is None or bool(str(prompt)), "prompt", prompt, 'a text, prompt="import os"')
    require_int("top", config.top, 1)
    is_folder = isinstance(output, str) and bool(output) and not Path(output).is_file()
    require(output is None or is_folder, "output", output, "a folder, output=outputs/explained")
    if output is not None:
        require_writable(Path(output) / FILE)


def _spec(config: DictConfig) -> ArmSpec:
    with_run = OmegaConf.merge(config, OF_A_RUN)
    assert isinstance(with_run, DictConfig)
    return arm_spec(with_run)


def _request(arm: Arm, spec: ArmSpec, text: object) -> Request:
    """Render the text that is given, or else the first prompt."""
    if text is None:
        prompts = arm.choose(spec.prompts.load()[:1])
        return arm.request(prompts[0], [])
    prompt = Prompt("prompt", "", ((Message("user", unescaped(str(text))),),), raw=True)
    return arm.request(arm.choose([prompt])[0], [])


def write(folder: Path, found: Explanation) -> None:
    """Write what reports read, and a page."""
    save(folder, found)
    write_text(folder / PAGE, explanation_page(found))
    print(f"look at {folder / PAGE}")


ENTRY = Entry(task)
