"""Can a kind of heads be trained, saved, loaded and drafted with? Tried on a random model."""

from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specdec.core.errors import UserError
from specdec.core.jsonl import write_text
from specdec.core.sampling import Sampling
from specdec.heads.base import DraftHeads
from specdec.lm.hf import HFCausalLM
from specdec.testing.proposers import check_proposer
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.heads import HeadTraining
from specdec.training.loss.kl import KL
from specdec.tree.chain import Chain
from specdec.tree.sparse import Sparse

WORDS = ("the", "cat", "dog", "sat", "on", "a", "mat", "and", "ran", "to", "log", ".")
NUM_HEADS = 2


def check_heads(training: type[HeadTraining], **options: Any) -> None:
    """Train heads of a kind for a step, save and load them, and draft with them.

    The loss must have a gradient for every weight, what is loaded must be what was saved, and the
    proposer must hold its contract on drawn and on fixed trees; see `check_proposer`.

    Args:
        training: how this kind is trained; it names the proposer, which names the module.
        options: of the module, beyond `num_heads`.

    Raises:
        UserError: a step of this fails, and how.
    """
    verifier = _verifier()
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, " ".join(WORDS[number * number % len(WORDS)] for number in range(200)))
        states = VerifierStates(verifier, str(text), str(text), max_length=16, eval_samples=2)
        acceptance = Acceptance(Chain(NUM_HEADS), Sampling(0.0), 1, max_new_tokens=4)
        number = {"num_heads": NUM_HEADS} if "num_heads" in signature(training).parameters else {}
        one = training(states, KL(), acceptance, **number, **options)
        one.prepare()
        module = one.module
        assert isinstance(module, HeadLosses)
        _train_a_step(one, module)
        one.save(module, Path(folder) / "heads", {})
        _require_loaded(training, module.heads, verifier, str(Path(folder) / "heads"))
    heads = module.heads.eval()
    for tree in (Chain(NUM_HEADS), Sparse([[0], [1], [0, 0], [1, 0]])):
        check_proposer(partial(training.proposer, heads, verifier, tree), verifier)


def _train_a_step(one: HeadTraining, module: HeadLosses) -> None:
    generator = torch.Generator().manual_seed(4)
    for weight in module.parameters():  # fresh heads are zero here and there
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
    one.loss(module, one.batch(0, 2)).backward()
    for name, weight in module.named_parameters():
        if weight.grad is None or not bool(weight.grad.isfinite().all()):
            raise UserError(f"{type(module.heads).__qualname__}: no gradient of {name}")
        weight.data.sub_(1e-3 * weight.grad)


def _require_loaded(
    training: type[HeadTraining], heads: DraftHeads, verifier: HFCausalLM, folder: str
) -> None:
    """What a folder holds must be what was trained, in half precision."""
    loaded = training.proposer.load(folder, verifier, Chain(NUM_HEADS)).heads
    found, expected = loaded.state_dict(), heads.state_dict()
    if found.keys() != expected.keys():
        raise UserError(f"{type(heads).__qualname__}: saved and loaded, it has other weights")
    for name, weight in expected.items():
        if not torch.equal(found[name].float(), weight.to(torch.bfloat16).float()):
            raise UserError(f"{type(heads).__qualname__}: {name} is not loaded as it was saved")


def _verifier() -> HFCausalLM:
    """Make a random Llama of two layers that reads WORDS."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return HFCausalLM(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer))
