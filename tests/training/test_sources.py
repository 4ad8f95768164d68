"""Samples of models with an encoder: what stands in them, and the decoder's states along them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.core.values import FINAL
from specdec.heads.forcing import HeadTargets, forced_states
from specdec.lm.cached_as import cached_like
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.proposer.chained import ChainedHeads
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text
from specdec.replaying.draft_distributions import HeadDistributions
from specdec.training.acceptance import Acceptance
from specdec.training.data.distill_prompts import Asking
from specdec.training.data.last_hidden import last_hidden, with_hidden
from specdec.training.data.left_out import LeftOut
from specdec.training.data.reading import Reading
from specdec.training.data.samples import Samples
from specdec.training.data.source_split import SourceSplit
from specdec.training.data.sources import Sources
from specdec.training.data.text import documents
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.draft_model import DraftModelTraining
from specdec.training.expected_acceptance import HeldOut
from specdec.training.joint import Joint
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.tree.chain import Chain
from tests.support.families import random_ids
from tests.support.seq2seq import SEQ2SEQ, tiny_seq2seq
from tests.training.test_samples import TALK, file, said, tokenizer

# Sources and texts, of unlike lengths on either side.
PAIRS = [
    (random_ids(12, 1), random_ids(3, 5)),
    (random_ids(1, 2), random_ids(30, 6)),
    (random_ids(20, 3), random_ids(1, 7)),
]
START = 7


def batch_of(start_id: int) -> Batch:
    rows = [torch.tensor([*source, start_id, *text]) for source, text in PAIRS]
    counted = [torch.arange(len(row)) > len(pair[0]) for row, pair in zip(rows, PAIRS, strict=True)]
    return Batch(pad_sequence(rows, batch_first=True), pad_sequence(counted, batch_first=True))


@pytest.mark.parametrize("family", sorted(SEQ2SEQ))
def test_states_are_those_of_the_stock_model(family: str) -> None:
    model: Any = tiny_seq2seq(family).requires_grad_(False)
    lm = EncoderDecoderLM(model)
    batch = batch_of(lm.start_id)
    found = last_hidden(lm, batch)
    alone = with_hidden(lm, batch).hidden
    assert alone is not None
    for row, (source, text) in enumerate(PAIRS):
        stock = model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([[lm.start_id, *text]]),
            output_hidden_states=True,
            use_cache=False,
        )
        own = slice(len(source), len(source) + 1 + len(text))
        for states in (found, alone):
            torch.testing.assert_close(states[row, own], stock.decoder_hidden_states[-1][0])
            assert not states[row, : len(source)].any(), "a source has none"
        torch.testing.assert_close(lm.unembed(found[row, own]), stock.logits[0])


def test_what_stands_behind_sources() -> None:
    batch = batch_of(START)
    split = SourceSplit.of(batch.counted)
    token_ids, counted = split.behind(batch.token_ids), split.behind(batch.counted)
    for row, (_, text) in enumerate(PAIRS):
        rest = [0] * (split.width - 1 - len(text))
        assert token_ids[row].tolist()[: 1 + len(text)] == [START, *text]
        assert counted[row].tolist() == [False, *[True] * len(text), *[False for _ in rest]]


def sources(**limits: int) -> Sources:
    return Sources(START, **{"max_source": 100, "max_target": 100, **limits})


def pair(question: str, answer: str) -> dict[str, Any]:
    first, second = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": [first, second]}


def test_a_message_is_the_source_and_the_next_one_the_text(tmp_path: Path) -> None:
    tok = tokenizer()  # with a chat template, which is not asked
    tok.add_special_tokens({"bos_token": "<s>"})
    data = file(tmp_path, pair("Is it a word?", "No."), pair("It is.", "Is it?"))
    samples = Samples.read(data, tok, 500, sources=sources())
    start, end = tok.decode([START]), tok.eos_token
    first, second = (f"Is it a word?{start}", f"No.{end}"), (f"It is.{start}", f"Is it?{end}")
    assert said(samples) == [first, second]
    source = tok("Is it a word?")["input_ids"]
    assert samples.batch([0]).token_ids[0, : len(source) + 1].tolist() == [*source, START]
    other = Samples.read(data, tok, 500, sources=Sources(START + 1, 100, 100))
    assert other.digest() != samples.digest(), "the store is another"


def test_the_end_token_is_written_once(tmp_path: Path) -> None:
    """T5's and Marian's tokenizers write it by themselves."""
    tok = tokenizer()
    plain = tok.encode

    class Ending:
        def __getattr__(self, name: str) -> Any:
            return getattr(tok, name)

        def __call__(self, text: str = "", text_target: str | None = None) -> dict[str, list[int]]:
            which = [] if text_target is None else [5]  # the other language
            return {"input_ids": [*which, *plain(text_target or text), tok.eos_token_id]}

    left_out = LeftOut()
    ending: Any = Ending()
    (document,) = documents_of(tmp_path, pair("Is it?", "No."))
    prompt, text = sources().sample(document, ending, "row 1", left_out)
    assert prompt == [*plain("Is it?"), tok.eos_token_id, START]
    assert text == [5, *plain("No."), tok.eos_token_id]


def documents_of(folder: Path, *rows: Any) -> list[Any]:
    return [each.document for each in documents(Reading().source(file(folder, *rows), "data.path"))]


def test_written_tokens_stay_as_they_are(tmp_path: Path) -> None:
    row = {"token_ids": [5, 6, START, 9, 8], "num_prompt_tokens": 3}
    samples = Samples.read(file(tmp_path, row), tokenizer(), 500, sources=sources())
    assert samples.batch([0]).token_ids.tolist() == [row["token_ids"]]
    assert samples.batch([0]).counted.tolist() == [[False] * 3 + [True] * 2]


def test_rows_that_are_no_pair_are_counted(tmp_path: Path) -> None:
    written = {"token_ids": [5, START, 9], "num_prompt_tokens": 1}
    rows = [
        *[pair("Is it?", "No.")] * 8,
        {"messages": TALK},
        {"messages": [{"role": "user", "content": "a"}]},
        pair("Is it?", " "),
        pair("Is it a word? Because of its brackets.", "No."),
        {"text": "Is it a word?"},
        written,
    ]
    samples = Samples.read(file(tmp_path, *rows), tokenizer(), 500, sources=sources(max_source=8))
    (line,) = samples.left_out.lines()
    assert line.startswith("6 of 14 rows left out")
    for reason in (
        "2: several turns, or none",
        "1: an empty answer",
        "1: a source of more than the encoder's 8 tokens",
        "1: plain text among conversations",
        "1: written tokens among conversations",
    ):
        assert reason in line, line


def test_texts_are_cut_where_the_decoder_ends(tmp_path: Path) -> None:
    data = file(tmp_path, pair("Is it?", "Because of its brackets."))
    samples = Samples.read(data, tokenizer(), 500, sources=sources(max_target=4))
    assert samples.num_counted == 3
    assert "3 tokens that the decoder writes" in "".join(samples.notes())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"token_ids": [5, 6, 9], "num_prompt_tokens": 2}, f"does not end with {START}"),
        ({"token_ids": [START, 6, 9], "num_prompt_tokens": 1}, "an empty source"),
        ({"token_ids": [5, START, 999], "num_prompt_tokens": 2}, "of another tokenizer"),
        ({"text": "Is it a word?"}, "plain text, and the verifier has an encoder"),
    ],
)
def test_bad_rows_are_told_in_a_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Samples.read(file(tmp_path, row), tokenizer(), 500, sources=sources())


def test_what_is_distilled_is_the_answer_to_a_source(tmp_path: Path) -> None:
    tok, left_out = tokenizer(), LeftOut()
    asking = Asking(tok, {}, 4, 8, sources())
    data = file(tmp_path, pair("Is it?", "No."), {"messages": TALK})
    (request,) = asking.requests(Reading().source(data, "data.path"), left_out)
    assert request.token_ids == [*tok("Is it?")["input_ids"], START]
    assert left_out.num_rows_left_out == 1
    text = Reading().source(file(tmp_path, {"text": "Is it a word?"}), "data.path")
    with pytest.raises(UserError, match="plain text"):
        list(asking.requests(text, LeftOut()))


@pytest.fixture
def states(tmp_path: Path) -> VerifierStates:
    lm = EncoderDecoderLM(tiny_seq2seq("bart", vocab_size=300), tokenizer())
    data = file(tmp_path, pair("Is it a word?", "No."), pair("It is.", "Because of its brackets."))
    return VerifierStates(lm, data, data, max_length=200)


@torch.no_grad()
def test_heads_are_trained_on_texts_alone(states: VerifierStates) -> None:
    training = MedusaTraining(states, KL(), HeldOut(Chain(2), Sampling(0.0)), num_heads=2)
    training.prepare()
    batch = training.batch(0, 2)
    total = 0.0
    for row in batch.rows():
        start = int(row.counted[0].int().argmax()) - 1
        hidden = last_hidden(states.verifier, row)
        text = [each[:, start:] for each in (hidden, row.token_ids, row.counted)]
        total += float(training.module(states.verifier, *text))
    assert float(training.loss(training.module, batch)) == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_prefix_layers_look_at_the_decoder_alone() -> None:
    """Replay's distributions are those of training, whatever stands in front as a source."""
    lm = EncoderDecoderLM(tiny_seq2seq("bart"))
    heads = ChainedHeads(lm.state_size, lm.vocab_size, 2, 1, True, "token", True, 4)
    for weight in heads.parameters():
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    batch, known = batch_of(lm.start_id), States(lm)
    hidden, texts = last_hidden(lm, batch), list[Text]()
    for row, (source, text) in enumerate(PAIRS):
        prompt = (*source, lm.start_id)
        texts.append(Text(f"{row}", "", 0, prompt, tuple(text), (), "length", len(text)))
        known.know(texts[-1], {FINAL: hidden[row, : len(source) + len(text)]})
    read = HeadDistributions(heads, lm, known)
    assert [read.first_start(text) for text in texts] == [1, 1, 1]
    found = list(read.along(texts, lm.vocab_size))
    for row, (source, text) in enumerate(PAIRS):
        own = [each[row : row + 1, len(source) :] for each in (hidden, batch.token_ids)]
        counted = batch.counted[row : row + 1, len(source) :]
        targets = HeadTargets.of(own[1], counted, 2)
        states = forced_states(heads, lm, own[0], own[1], targets)
        for head, state in enumerate(states):
            number = len(text) - 1 - head  # that a step would draft at this depth
            expected = heads.logits(head, state, targets.following_ids[:, head], lm.unembed)
            expected = expected[: max(0, number)]
            torch.testing.assert_close(found[head][row, 1 : 1 + len(expected)], expected)


def test_acceptance_is_decoded_or_computed(states: VerifierStates, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    prompts = file(folder, {"id": "a", "prompt": "Is it?"}, {"id": "b", "prompt": "No."})
    own = {"prompts": prompts, "max_new_tokens": 12}
    found: list[float] = []
    for kind in (HeldOut, Acceptance):
        training = MedusaTraining(states, KL(), kind(Chain(2), Sampling(0.0), **own), num_heads=2)
        training.prepare()
        found.append(training.evaluate(training.module.eval())["eval_block_efficiency"])
    assert found[0] == pytest.approx(found[1]), "along the verifier's own texts both are exact"


def test_what_else_is_trained_is_refused(states: VerifierStates) -> None:
    acceptance = HeldOut(Chain(2), Sampling(0.0))
    with pytest.raises(UserError, match=r"joint=true: the verifier has an encoder"):
        Joint(MedusaTraining(states, KL(), acceptance, num_heads=2))
    with pytest.raises(UserError, match=r"train=draft_model: the verifier has an encoder"):
        DraftModelTraining(states, KL(), acceptance)


def test_a_copy_reads_as_much() -> None:
    for limit in (None, 9, 33, 64):
        lm = EncoderDecoderLM(tiny_seq2seq("bart"), max_length=limit)
        found = cached_like(lm, lm.model)
        assert isinstance(found, EncoderDecoderLM)
        rooms = [(each.max_source, each.max_target, each.max_length) for each in (found, lm)]
        assert rooms[0] == rooms[1]
