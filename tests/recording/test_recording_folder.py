"""Recordings: what is scored, what is kept, and what becomes of one that was interrupted."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.core.vouching import write_note
from specdec.decoding.stopping import Stopping
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.recording import scoring
from specdec.recording.manifest import MANIFEST
from specdec.recording.recorded import Recording, read_recording, require_made_for
from specdec.recording.scoring import LEAST_LOG_P, Scored, score
from specdec.recording.texts import Text
from specdec.recording.writer import RecordingWriter, drop_damaged
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.tree.sampled import SampledTree
from tests.support.families import VOCAB_SIZE, plain_logits, random_ids, tiny_model
from tests.support.rule_cases import rules_by_name
from tests.support.running import Tiny
from tests.support.toy import Conditional, full_context, memoryless, table_lm, warped

DISTRIBUTION = full_context(3, 0.7, vocab_size=6)
K = 4
WARPED = Sampling(0.7, top_p=0.9)
SETTINGS: dict[str, Any] = {
    "verifier_fingerprint": {
        **{"path": "models/one", "dtype": "float32", "config": "c1", "tokenizer": "t1"},
        **{"weights": "w1", "weights_in_bfloat16": "b1", "weights_in_float16": "h1"},
    },
    "sampling": WARPED,
    "stopping": Stopping(16, frozenset({5})),
    "top_k": K,
    "source": "drawn here",
}


def text(name: str, prompt_ids: Sequence[int], output_ids: Sequence[int], turn: int = 0) -> Text:
    """A text that nobody has scored yet."""
    return Text(name, "toy", turn, tuple(prompt_ids), tuple(output_ids), (), "length", 16)


def drawn(sampling: Sampling, num: int = 9, distribution: Conditional = DISTRIBUTION) -> list[Text]:
    """Draw texts of many lengths, one of them empty, some a second turn."""
    found: list[Text] = []
    for number in range(num):
        stream, tokens = RandomStream("text", number), [0, 1, 2][: 1 + number % 3]
        prompt = tuple(tokens)
        for _ in range((5 * number) % 12):
            tokens.append(stream.choose(warped(distribution, sampling)(tuple(tokens))))
        name, turn = f"prompt {number // 2}", number % 2
        found.append(text(name, prompt, tokens[len(prompt) :], turn))
    return found


def scored(sampling: Sampling = WARPED, top_k: int = K) -> list[Scored]:
    return list(score(drawn(sampling), table_lm(DISTRIBUTION, 6), sampling, top_k))


def write(folder: Path, texts: Sequence[Scored], shard_tokens: int = 12) -> RecordingWriter:
    """Add what is not there yet, and leave the writer open."""
    writer = RecordingWriter(folder, **SETTINGS, shard_tokens=shard_tokens)
    for each in texts:
        if each.text.key not in writer.done:
            writer.add(each)
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete recording of several shards."""
    write(tmp_path / "texts", scored()).close()
    return tmp_path / "texts"


def assert_same(found: Sequence[Scored], expected: Sequence[Scored]) -> None:
    assert [each.text for each in found] == [each.text for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            assert mine.dtype == other.dtype
            assert mine.equal(other)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- Scoring ---


@pytest.mark.parametrize("sampling", [Sampling(), WARPED, Sampling(top_k=2)], ids=str)
def test_tokens_have_the_probability_of_the_distribution_that_they_were_drawn_from(
    sampling: Sampling,
) -> None:
    """And the K likeliest tokens theirs."""
    texts = {each.key: each for each in drawn(sampling)}
    found = list(score(list(texts.values()), table_lm(DISTRIBUTION, 6), sampling, K, batch=2))
    assert sorted(each.text.key for each in found) == sorted(texts)
    for each in found:
        tokens, original = each.text.output_ids, texts[each.text.key]
        assert replace(each.text, log_p=()) == original
        assert each.top_ids.shape == each.top_log_p.shape == (len(tokens), K)
        for place, token in enumerate(tokens):
            before = original.prompt_ids + tokens[:place]
            distribution = warped(DISTRIBUTION, sampling)(before)
            assert each.text.log_p[place] == pytest.approx(
                float(distribution[token].log()), abs=1e-5
            )
            likeliest = distribution.sort(descending=True).values[:K].log()
            assert each.top_log_p[place].tolist() == pytest.approx(likeliest.tolist(), abs=1e-5)
            there = likeliest > -math.inf
            own = distribution.log()[each.top_ids[place].long()]
            assert own[there].tolist() == pytest.approx(likeliest[there].tolist())
            assert set(each.top_ids[place][~there].tolist()) <= {0}
            assert float(each.logsumexp[place]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(), WARPED], ids=["T=1", "warped"])
@pytest.mark.parametrize("logits_at_once", [1 << 25, 3 * 300], ids=["whole", "in_chunks"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_is_read_as_plain_text(
    batch: int,
    logits_at_once: int,
    sampling: Sampling,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same numbers as from one stock forward for each text, however the texts are dealt out."""
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", logits_at_once)
    verifier = load(str(tiny.verifier))
    texts = sampled_from(verifier, sampling)
    found = list(score(texts, verifier, sampling, top_k=5, batch=batch))
    assert len(found) == len(texts)
    for each in found:
        tokens = torch.tensor(each.text.output_ids)[:, None]
        whole = [*each.text.prompt_ids, *each.text.output_ids]
        logits = plain_logits(verifier.model, whole)[len(each.text.prompt_ids) - 1 : -1]
        distributions = sampling.warp(logits)
        log_p = distributions.gather(1, tokens)[:, 0].log()
        assert each.text.log_p == pytest.approx(log_p.tolist(), abs=1e-4)
        top_p = distributions.topk(5).values
        assert torch.allclose(each.top_log_p.exp(), top_p, atol=1e-5)
        assert torch.allclose(
            distributions.gather(1, each.top_ids.long())[top_p > 0], top_p[top_p > 0]
        )
        assert each.logsumexp.tolist() == pytest.approx(logits.logsumexp(1).tolist(), abs=1e-4)


def sampled_from(verifier: HFCausalLM, sampling: Sampling) -> list[Text]:
    """Draw texts of several lengths, token by token."""
    texts: list[Text] = []
    for number, length in enumerate((7, 1, 10, 0, 4)):
        stream = RandomStream("drawn", number)
        tokens = random_ids(1 + 2 * number, number, verifier.vocab_size)
        prompt = tuple(tokens)
        for _ in range(length):
            tokens.append(stream.choose(sampling.warp(plain_logits(verifier.model, tokens)[-1])))
        texts.append(text(str(number), prompt, tokens[len(prompt) :]))
    return texts


def test_greedy_texts_are_certain() -> None:
    greedy = Sampling(temperature=0)
    for each in score(drawn(greedy), table_lm(DISTRIBUTION, 6), greedy, K):
        assert set(each.text.log_p) <= {0.0}
        assert each.top_ids[:, 0].tolist() == list(each.text.output_ids)
        assert each.top_log_p.tolist() == [[0.0] + [-math.inf] * (K - 1)] * len(each.top_ids)
        rows = each.rows(6)
        assert rows is not None
        assert rows.equal(torch.eye(6)[list(each.text.output_ids)])


def test_a_distribution_may_have_fewer_tokens_than_are_kept() -> None:
    (each,) = score([text("a", (0,), (1, 1))], table_lm(memoryless(0, 0.25, 0.75)), Sampling(), 5)
    assert each.top_ids.tolist() == [[2, 1, 0, 0, 0]] * 2
    assert each.top_log_p.exp().tolist() == [pytest.approx([0.75, 0.25, 0, 0, 0])] * 2


def test_a_token_that_rounding_took_out_of_the_distribution_has_the_least_logarithm() -> None:
    """One in a hundred may be so; the largest float32 below that is 0."""
    verifier = table_lm(memoryless(0.0, 0.5, 0.5))
    (each,) = score([text("a", (1,), [0] + [1] * 99)], verifier, Sampling(), 2)
    assert each.text.log_p[:2] == (LEAST_LOG_P, pytest.approx(math.log(0.5)))
    assert pytest.approx(math.log(torch.finfo(torch.float32).tiny)) == LEAST_LOG_P
    rows = each.rows(3)
    assert rows is not None
    assert torch.finfo(torch.float32).tiny <= float(rows[0, 0]) < 1e-37


def test_texts_of_another_distribution_are_refused() -> None:
    verifier = table_lm(memoryless(0.0, 0.5, 0.5))
    texts = [text("a", (1,), [0, 0] + [1] * 98), text("b", (1,), [1] * 99)]
    with pytest.raises(UserError, match="2 or more of 199 tokens are impossible at temperature=1"):
        list(score(texts, verifier, Sampling(), 2, batch=1))


def test_a_verifier_that_says_nan_is_refused() -> None:
    with pytest.raises(UserError, match="tokens are impossible"):
        list(score([text("a", (1,), (1,))], table_lm(memoryless(*[math.nan] * 3)), Sampling(), 2))


def test_texts_of_another_vocabulary_are_refused() -> None:
    verifier = table_lm(memoryless(0.0, 0.5, 0.5))
    with pytest.raises(UserError, match="token 3 is beyond the verifier's vocabulary of 3"):
        list(score([text("a", (1,), [1] * 999 + [3])], verifier, Sampling(), 2))


def test_texts_of_another_distribution_are_refused_before_all_are_read() -> None:
    verifier = table_lm(memoryless(0.0, 0.5, 0.5))
    texts = [text(str(number), (1,), [0] * 10) for number in range(50)]
    with pytest.raises(UserError, match="do not have this verifier's distribution"):
        next(score(texts, verifier, Sampling(), 2, batch=1))
    assert verifier.num_calls == 1


# --- Whole rows ---


@pytest.mark.parametrize("sampling", [Sampling(top_k=3), Sampling(0.5, top_p=0.5)], ids=str)
def test_distributions_that_were_kept_whole_are_rebuilt(sampling: Sampling) -> None:
    verifier = HFCausalLM(tiny_model("llama"))
    texts = sampled_from(verifier, sampling)
    for each in score(texts, verifier, sampling, top_k=40):
        whole = [*each.text.prompt_ids, *each.text.output_ids]
        logits = plain_logits(verifier.model, whole)[len(each.text.prompt_ids) - 1 : -1]
        rows = each.rows(VOCAB_SIZE)
        assert rows is not None
        assert torch.allclose(rows, sampling.warp(logits), atol=1e-5)
        assert (rows > 0).equal(sampling.warp(logits) > 0)


def test_processors_see_the_whole_text_in_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_twice(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, input_ids[:, -1:], -math.inf)

    texts, sampling = [text("a", (0,), (1, 2, 1, 0, 2, 1))], Sampling(processors=[never_twice])
    (whole,) = score(texts, table_lm(DISTRIBUTION, 6), sampling, K)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 2 * 6)
    (pieces,) = score(texts, table_lm(DISTRIBUTION, 6), sampling, K)
    assert pieces.text.log_p == pytest.approx(whole.text.log_p, abs=1e-6)
    assert min(whole.text.log_p) > -20, "a token came twice in a row: the test is blind"


def test_places_without_a_token_take_nothing_from_the_first_one() -> None:
    distribution = [0.75, 0.25, 0.0]
    (each,) = score([text("a", (0,), (1,))], table_lm(memoryless(*distribution)), Sampling(), 5)
    rows = each.rows(3)
    assert rows is not None
    assert rows.tolist() == [pytest.approx(distribution)]


def test_distributions_that_were_cut_are_not_rebuilt() -> None:
    """One token of a text is enough."""
    whole, cut = memoryless(0.5, 0.5, 0.0), memoryless(0.4, 0.3, 0.3)
    verifier = table_lm(lambda tokens: cut(tokens) if len(tokens) == 2 else whole(tokens))
    texts = [text("short", (0,), (1,)), text("long", (0,), (1, 1, 1))]
    long, short = score(texts, verifier, Sampling(), 2)
    assert short.rows(3) is not None
    assert long.rows(3) is None
    assert all(each.rows(3) is None for each in score(texts, verifier, Sampling(), 0))


def test_mass_is_complete_where_the_rest_is_rounding() -> None:
    for rest, complete in [(1e-7, True), (1e-5, False)]:
        verifier = table_lm(memoryless(0.5, 0.5 - rest, rest))
        (each,) = score([text("a", (0,), (1,))], verifier, Sampling(), 2)
        assert each.has_rows is complete


@pytest.mark.parametrize(
    ("rule", "draw"),
    [("rejection", Draw.IID), ("rejection", Draw.WITHOUT_REPLACEMENT), ("kseq", Draw.IID)],
)
@pytest.mark.parametrize("sampling", [WARPED, Sampling(0.0)], ids=str)
def test_rules_that_need_whole_rows_need_no_verifier_where_they_were_kept(
    sampling: Sampling, rule: str, draw: Draw, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "sampling": sampling, "top_k": 6}
    with_rows = scored(sampling, top_k=6)
    assert all(each.has_rows for each in with_rows)
    writer = RecordingWriter(tmp_path / "whole", **settings)
    for each in with_rows:
        writer.add(each)
    writer.close()
    found = read_recording(tmp_path / "whole")
    texts = [text for text in found.texts if text.output_ids]
    tree = SampledTree([(0,), (1,), (0, 0), (0, 1)], draw)
    arms = {"arm": ClosedArm(tree, rules_by_name()[rule], temperature=1.0)}
    distributions = ModelDistributions(table_lm(full_context(9, 0.7, vocab_size=6), 6))
    lm = table_lm(DISTRIBUTION, 6)
    exact, known, unknown = (
        torch.cat(
            [
                part.survival.flatten(0, 1)
                for part in replay(texts, distributions, arms, sampling, verifier, 6, rows=rows)[
                    "arm"
                ]
            ]
        )
        for verifier, rows in ((lm, None), (None, found.rows), (lm, lambda text, size: None))
    )
    assert 0.1 < float(exact[:, 1].mean()) < 0.95
    assert torch.allclose(known, exact, atol=1e-5, rtol=0)
    assert unknown.equal(exact)


# --- Writing and reading ---


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    found = read_recording(folder)
    assert_same(found.scored, scored())
    assert found.texts == [each.text for each in scored()]
    made = {"verifier_fingerprint": found.verifier}
    ends = Stopping(found.max_new_tokens, found.end_ids, found.stop_strings)
    made |= {"sampling": found.sampling, "stopping": ends, "top_k": found.top_k}
    made |= {"source": found.source}
    assert made == {**SETTINGS, "sampling": WARPED.to_row()}
    assert found.num_tokens == sum(len(each.text.output_ids) for each in scored())
    assert found.top(found.texts[3]) is found.scored[3]
    assert found.has_rows == all(each.has_rows for each in scored())


def test_the_manifest_says_what_is_there(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    shards = manifest.pop("shards")
    assert len(shards) > 2
    for shard in shards:
        content = (folder / shard["file"]).read_bytes()
        assert shard["sha256"] == sha256(content).hexdigest()
        assert shard["num_bytes"] == len(content)
    assert sum(shard["num_tokens"] for shard in shards) == manifest["num_tokens"]
    assert sum(shard["num_texts"] for shard in shards) == manifest["num_texts"] == 9
    assert manifest["sampling"] == WARPED.to_row()
    assert manifest["complete"] is True
    tensors = load_file(folder / shards[0]["file"])
    assert {tensors[name].dtype for name in ("prompt_ids", "output_ids")} == {torch.int32}


def test_tokens_that_need_64_bits_have_them(tmp_path: Path) -> None:
    (each, *_) = scored()
    large = each._replace(text=replace(each.text, prompt_ids=(1 << 40, 1)))
    write(tmp_path, [large]).close()
    assert read_recording(tmp_path).texts == [large.text]


def test_a_recording_of_nothing_is_a_recording(tmp_path: Path) -> None:
    write(tmp_path / "none", []).close()
    assert read_recording(tmp_path / "none").texts == []
    (empty,) = (each for each in scored() if not each.text.output_ids and each.text.turn == 0)
    write(tmp_path / "empty", [empty]).close()
    assert_same(read_recording(tmp_path / "empty").scored, [empty])


@pytest.mark.parametrize("num_texts", range(10))
def test_an_interrupted_recording_goes_on(num_texts: int, folder: Path, tmp_path: Path) -> None:
    """Abandoned after any number of texts, in the end it is byte for byte the undisturbed one."""
    again = tmp_path / "again"
    write(again, scored()[:num_texts])
    with pytest.raises(UserError, match="interrupted; the same record command goes on"):
        read_recording(again)
    resumed = RecordingWriter(again, **SETTINGS)
    assert resumed.done <= {each.text.key for each in scored()[:num_texts]}
    write(again, scored()).close()
    assert files(again) == files(folder)


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["before the shard has its name", "before the manifest"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_kill_at_any_moment_leaves_what_can_be_resumed(
    number: int, moment: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, name = tmp_path / "again", f"shard-{number:05d}.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_at(name, os.replace, moment))
        with pytest.raises(Killed):
            write(again, scored())
    assert (again / name).exists() == (moment == "before the manifest")
    listed = json.loads((again / MANIFEST).read_text(encoding="utf-8"))["shards"]
    assert len(listed) == number
    (again / name).write_bytes(b"whatever a kill leaves")  # nobody looks at it
    write(again, scored()).close()
    assert files(again) == files(folder)


def killed_at(name: str, rename: Callable[..., None], moment: str) -> Callable[[Path, Path], None]:
    """Rename files until this one is due; `json` is renamed by the same function."""

    def replacing(source: Path, target: Path) -> None:
        if target.name == name and moment.startswith("before the shard"):
            raise Killed
        if target.name == MANIFEST and (target.parent / name).exists():
            raise Killed
        rename(source, target)

    return replacing


def test_a_complete_recording_takes_more_texts(folder: Path) -> None:
    """And is not complete until it has them."""
    writer = RecordingWriter(folder, **SETTINGS)
    assert writer.done == {each.text.key for each in scored()}
    more = scored()[0]._replace(text=replace(scored()[0].text, prompt_id="one more"))
    writer.add(more)
    with pytest.raises(UserError, match="interrupted"):
        read_recording(folder)
    writer.close()
    assert_same(read_recording(folder).scored, [*scored(), more])


OTHERS: dict[str, Mapping[str, Any]] = {
    "verifier.weights=w1, not w2": {
        "verifier_fingerprint": {**SETTINGS["verifier_fingerprint"], "weights": "w2"}
    },
    "verifier.dtype=float32, not bfloat16": {
        "verifier_fingerprint": {**SETTINGS["verifier_fingerprint"], "dtype": "bfloat16"}
    },
    "sampling.temperature=0.7, not 1.0": {"sampling": Sampling(1.0, top_p=0.9)},
    "sampling.top_p=0.9, not 1.0, sampling.min_p=0.0, not 0.1": {
        "sampling": Sampling(0.7, min_p=0.1)
    },
    "max_new_tokens=16, not 32": {"stopping": Stopping(32, frozenset({5}))},
    "end_ids=(5,), not (4, 5)": {"stopping": Stopping(16, frozenset({5, 4}))},
    "top_k=4, not 5": {"top_k": 5},
    "source=drawn here, not elsewhere": {"source": "elsewhere"},
}


@pytest.mark.parametrize("named", OTHERS)
def test_other_settings_do_not_go_into_the_same_folder(named: str, folder: Path) -> None:
    before = files(folder)
    with pytest.raises(UserError) as caught:
        RecordingWriter(folder, **{**SETTINGS, **OTHERS[named]})
    assert_named(caught.value, folder, f"begun with other settings ({named})")
    assert files(folder) == before


def test_where_the_verifier_lies_does_not_matter(folder: Path) -> None:
    moved = {**SETTINGS["verifier_fingerprint"], "path": "elsewhere"}
    assert RecordingWriter(folder, **{**SETTINGS, "verifier_fingerprint": moved}).done


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "texts", [])


def assert_named(error: UserError, folder: Path, *names: str) -> None:
    message = str(error)
    assert message.startswith(f"recording={str(folder)!r}: ")
    assert len(message.splitlines()) == 1
    for name in names:
        assert name in message


def complaint(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_recording(folder)
    return caught.value


SHARD = "shard-00001.safetensors"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_named(share: float, folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: int(share * len(content))])
    assert_named(complaint(folder), folder, SHARD, "truncated", f"of {len(content)} bytes")
    with pytest.raises(UserError, match=f"{SHARD} is truncated"):
        RecordingWriter(folder, **SETTINGS)


@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_flipped_bit_is_named(place: int, folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[place] ^= 1
    (folder / SHARD).write_bytes(content)
    assert_named(complaint(folder), folder, SHARD, "damaged", "sha256")


def test_a_shard_that_is_too_long_is_named(folder: Path) -> None:
    with (folder / SHARD).open("ab") as shard:
        shard.write(b"more")
    assert_named(complaint(folder), folder, SHARD, "damaged")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert_named(complaint(folder), folder, SHARD, "missing")


def test_a_shard_that_nobody_lists_is_not_there(folder: Path) -> None:
    (folder / "shard-00077.safetensors").write_bytes(b"from a kill")
    assert_same(read_recording(folder).scored, scored())


def cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])


@pytest.mark.parametrize("damaged", [["shard-00000.safetensors"], [SHARD], [MANIFEST], []])
def test_what_is_damaged_is_recorded_again_and_nothing_else(
    damaged: list[str], folder: Path
) -> None:
    before = files(folder)
    for name in damaged:
        cut(folder, name)
    reasons = drop_damaged(folder)
    assert len(reasons) == len(damaged)
    assert all(name in reason for name, reason in zip(damaged, reasons, strict=True))
    if damaged and damaged != [MANIFEST]:
        assert complaint(folder), "what lacks texts is not complete"
        done = RecordingWriter(folder, **SETTINGS, shard_tokens=12).done
        assert 0 < len(done) < len(scored())
    write(folder, scored()).close()
    assert files(folder) == before


def with_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> UserError:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    manifest.pop("crc32")
    write_note(folder / MANIFEST, manifest)
    return complaint(folder)


def test_a_shard_of_other_sizes_than_listed_is_named(folder: Path) -> None:
    def one_more(manifest: dict[str, Any]) -> None:
        for place in (manifest, manifest["shards"][1]):
            place["num_tokens"] += 1

    assert_named(with_manifest(folder, one_more), folder, SHARD, "output_ids is", "not [")


def replaced(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> UserError:
    """Write the shard otherwise, and list it as it is then."""
    tensors = load_file(folder / SHARD)
    change(tensors)
    fields = json.dumps([{}] * (len(tensors["output_offsets"]) - 1))
    save_file(tensors, folder / SHARD, {"texts": fields})
    content = (folder / SHARD).read_bytes()

    def list_it(manifest: dict[str, Any]) -> None:
        entry = {"sha256": sha256(content).hexdigest(), "num_bytes": len(content)}
        manifest["shards"][1].update(entry)

    return with_manifest(folder, list_it)


BROKEN: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "tensor logsumexp": lambda tensors: tensors.pop("logsumexp"),
    "top_ids is [": lambda tensors: tensors.update(top_ids=tensors["top_ids"][:, 1:].clone()),
    "prompt_offsets do not go through prompt_ids": lambda tensors: tensors.update(
        prompt_ids=tensors["prompt_ids"][:-1].clone()
    ),
    "output_offsets do not go": lambda tensors: tensors["output_offsets"][0].fill_(3),
    "prompt_id": lambda tensors: None,  # a text without its name
}


@pytest.mark.parametrize("named", BROKEN)
def test_a_shard_that_others_wrote_is_named(named: str, folder: Path) -> None:
    assert_named(replaced(folder, BROKEN[named]), folder, SHARD, named)


def test_a_manifest_that_was_cut_anywhere_is_named(folder: Path) -> None:
    whole = (folder / MANIFEST).read_text(encoding="utf-8")
    for length in range(0, len(whole.rstrip()), 7):
        (folder / MANIFEST).write_text(whole[:length], encoding="utf-8")
        assert_named(complaint(folder), folder, MANIFEST, "damaged")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no 'shards'": lambda manifest: manifest.pop("shards"),
    "no 'version'": lambda manifest: manifest.pop("version"),
    "the totals": lambda manifest: manifest.update(num_texts=1),
    "top_p=2": lambda manifest: manifest["sampling"].update(top_p=2),
    "a shard of": lambda manifest: manifest["shards"][0].update(num_bytes="many"),
    "dictionary": lambda manifest: manifest.update(verifier="zoo"),
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_manifest_that_says_nonsense_is_named(named: str, folder: Path) -> None:
    error = with_manifest(folder, CHANGES[named])
    assert_named(error, folder, MANIFEST, "damaged", named)


@pytest.mark.parametrize("content", ["[]", "3", '"text"', "\udcff"])
def test_a_manifest_of_something_else_is_named(content: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(content, encoding="utf-8", errors="surrogateescape")
    assert_named(complaint(folder), folder, MANIFEST, "damaged")


def test_another_version_is_named(folder: Path) -> None:
    error = with_manifest(folder, lambda manifest: manifest.update(version=3, shards="new"))
    assert_named(error, folder, "version 3, and this reads version 2")


def test_a_folder_without_a_recording_is_named(tmp_path: Path) -> None:
    assert_named(complaint(tmp_path / "nowhere"), tmp_path / "nowhere", f"no {MANIFEST}")


# --- Whose texts they are ---


def made_with(folder: Path, sampling: Sampling = WARPED, **verifier: str) -> Recording:
    theirs = {**SETTINGS["verifier_fingerprint"], **verifier}
    return replace(read_recording(folder), verifier=theirs, sampling=sampling.to_row())


def test_the_same_verifier_elsewhere_and_of_another_dtype_will_do(folder: Path) -> None:
    ours = SETTINGS["verifier_fingerprint"]
    require_made_for(made_with(folder), ours, WARPED)
    # What the coarser of two types rounds away does not count.
    theirs = made_with(folder, path="elsewhere", dtype="bfloat16", weights="other")
    require_made_for(theirs, ours, WARPED)
    require_made_for(made_with(folder, dtype="float16", weights="other"), ours, WARPED)


@pytest.mark.parametrize(
    ("verifier", "named"),
    [
        ({"config": "c2"}, "(config differ)"),
        ({"tokenizer": "t2", "weights": "w2"}, "(tokenizer, weights differ)"),
        ({"weights": "w2"}, "(weights differ)"),
        ({"dtype": "float16", "weights_in_float16": "h2"}, "(weights differ)"),
        ({"dtype": "bfloat16", "weights_in_bfloat16": "b2"}, "(weights differ)"),
    ],
)
def test_texts_of_another_verifier_are_refused(
    verifier: dict[str, Any], named: str, folder: Path
) -> None:
    with pytest.raises(UserError) as caught:
        require_made_for(made_with(folder, **verifier), SETTINGS["verifier_fingerprint"], WARPED)
    assert_named(caught.value, folder, f"another verifier, 'models/one' {named}")


def test_models_are_told_apart(tiny: Tiny, folder: Path) -> None:
    """By the fingerprints that real models have."""
    verifier, draft = (
        dict[str, Any](fingerprint(load(str(path)))) for path in (tiny.verifier, tiny.draft)
    )
    require_made_for(made_with(folder, **verifier), verifier, WARPED)
    with pytest.raises(UserError, match=r"\(weights differ\)"):
        require_made_for(made_with(folder, **verifier), draft, WARPED)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(1.0, top_p=0.9), "sampling.temperature=1.0, and this is 0.7: texts of another"),
        (Sampling(0.7), "sampling.top_p=1.0, and this is 0.9: texts of another distribution"),
        (
            Sampling(0.7, top_k=3, top_p=0.9, min_p=0.1),
            "sampling.top_k=3, sampling.min_p=0.1, and this is 0, 0.0: texts of another",
        ),
    ],
)
def test_texts_of_another_sampling_are_refused(
    sampling: Sampling, named: str, folder: Path
) -> None:
    theirs, ours = made_with(folder, sampling), SETTINGS["verifier_fingerprint"]
    with pytest.raises(UserError) as caught:
        require_made_for(theirs, ours, WARPED)
    assert_named(caught.value, folder, f"texts at {named}", "record them anew")
