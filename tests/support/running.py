"""Tiny models on disk, and entry points that run inside this process."""

import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase

CONTEXT = 256
VOCAB_SIZE = 300
TEXT = "def add(first, second):\n    return first + second\n\nprint(add(1, 2))\n" * 8
OTHER_TEXT = "Wer reitet so spaet durch Nacht und Wind? Es ist der Vater mit seinem Kind.\n" * 8
PROMPTS = (
    '{"id": "add", "category": "code", "prompt": "def add(first, second):"}',
    '{"id": "print", "category": "code", "prompt": "print(add(1, 2))\\nprint(add("}',
    '{"id": "text", "category": "text", "prompt": "first second first second fi"}',
)


@dataclass(frozen=True)
class Tiny:
    """Folders of models, and a file of three prompts."""

    verifier: Path
    draft: Path
    padded: Path  # a draft with the verifier's tokenizer and 20 logits more than tokens
    stranger: Path  # a draft with another tokenizer and as many logits as the verifier
    prompts: Path
    text: Path

    def options(self, run_dir: Path | str, *more: str) -> list[str]:
        """Return the overrides of a short run; in Hydra the last one of a key holds."""
        return [
            f"verifier.path={self.verifier}",
            f"draft.path={self.draft}",
            f"prompts.path={self.prompts}",
            "max_new_tokens=12",
            f"output={run_dir}",
            *more,
        ]


@dataclass(frozen=True)
class Ended:
    """What a command left behind on the terminal."""

    status: int
    out: str
    err: str


CommandLine = Callable[..., Ended]


def write_llama(
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    num_logits: int = VOCAB_SIZE,
    noise: float = 0.0,
) -> Path:
    """Save a random model whose logits vary as much as a trained one's; noise makes a draft."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    end: Any = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=num_logits,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny(folder: Path) -> Tiny:
    """Write random Llamas, 2 layers of 32, and their byte-level tokenizers."""
    from specdec.training.data.tokenizer import train_tokenizer

    shared = train_tokenizer([TEXT], VOCAB_SIZE)
    foreign = train_tokenizer([OTHER_TEXT], VOCAB_SIZE)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return Tiny(
        verifier=write_llama(folder / "verifier", shared),
        draft=write_llama(folder / "draft", shared, noise=0.03),
        padded=write_llama(folder / "padded", shared, num_logits=VOCAB_SIZE + 20),
        stranger=write_llama(folder / "stranger", foreign),
        prompts=prompts,
        text=text,
    )


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Let one command compose its options once.

    We compose them to plan, and Hydra twice more: to learn its mode, which the plan has made sure
    of, and to run. Half of what most tests of an entry point took was this.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from hydra.types import RunMode

    real = ConfigLoaderImpl.load_configuration
    known: dict[tuple[object, ...], DictConfig] = {}

    def load(self: ConfigLoaderImpl, **given: Any) -> "DictConfig":
        places = [str(each.path) for each in self.config_search_path.get_path()]
        key = (given["config_name"], given["run_mode"], *given["overrides"], *places)
        if key not in known:
            known[key] = real(self, **given)
        return deepcopy(known[key])

    patch.setattr(ConfigLoaderImpl, "load_configuration", load)
    patch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)


REPORTING = {"compare", "decode", "replay", "report", "train"}


def run_in_process(entry_point: str, *options: str, plots: bool = False) -> Ended:
    """Call `main()` of an entry point; what is not SystemExit is a traceback, and comes out.

    Reports are written, but for their plots, unless a test is about these: to draw takes longer
    than all else that most of them do.
    """
    from hydra.core.global_hydra import GlobalHydra

    main = getattr(import_module("specdec.command.doors"), entry_point)
    GlobalHydra.instance().clear()
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HYDRA_FULL_ERROR", "1")  # the entry point sets it for its whole process
        patch.setattr(sys, "argv", [entry_point, *options])
        compose_once(patch)
        if entry_point == "costs" and not plots:
            patch.setattr("specdec.command.costs.draw", lambda *_: [])
        if entry_point in REPORTING and not plots:
            patch.setattr("specdec.report.write.figures", lambda *_: {})
        try:
            main()
            status = 0
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    return Ended(status, out.getvalue(), err.getvalue())
