"""The options `prompts.*`: what is left out or cut is counted and named, and nothing is ignored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdec.results.run_dir import read_traces
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

CHAT = """{%- for m in messages -%}[{{ m.role }}]{{ m.content }}{%- endfor -%}
{%- if add_generation_prompt -%}[{{ mood | default('plain') }}]{%- endif -%}"""
LONG = "return " * 300


def write_prompts(*rows: dict[str, Any], path: str = "asked.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"prompts.path={path}"


def with_tokenizer(tiny: Tiny, folder: str, **changes: Any) -> str:
    """Copy the verifier, with another chat template or further tokens."""
    shutil.copytree(tiny.verifier, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in changes.pop("tokens", ()):
        tokenizer.add_tokens([token])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return f"verifier.path={folder}"


def summary(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "summary.json").read_text())


def test_prompts_that_are_too_long_are_left_out(cli: CommandLine, tiny: Tiny) -> None:
    rows = {"id": "long", "prompt": LONG}, {"id": "a", "prompt": "def"}
    prompts = write_prompts(*rows, {"id": "later", "turns": ["def", LONG]})
    ended = cli("decode", *tiny.options("run", prompts))
    assert ended.status == 2
    assert "asked.jsonl:1: prompt long: " in ended.err
    arms = 'arms=["proposer=none","proposer=ngram"]'
    for command, more, run in (("decode", "", "run"), ("compare", arms, "run2/ngram")):
        folder = run.split("/")[0]
        options = tiny.options(folder, prompts, "prompts.skip_too_long=true", *filter(None, [more]))
        ended = cli(command, *options)
        assert ended.status == 0, ended.err
        assert "2 prompts too long and left out: long, later" in ended.out
        assert (summary(run)["num_prompts"], summary(run)["num_skipped"]) == (1, 2)
    ended = cli("decode", *tiny.options("run", prompts, "prompts.skip_too_long=true"))
    assert "complete" in ended.out


def test_what_is_too_long_may_be_skipped(cli: CommandLine, tiny: Tiny) -> None:
    """Without `skip_too_long` the end of what is longer is continued."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.verifier)
    token_ids = tokenizer(LONG)["input_ids"]
    tail = tokenizer.decode(token_ids[-20:])
    assert tokenizer(tail)["input_ids"] == token_ids[-20:]
    prompts = write_prompts({"id": "long", "prompt": LONG}, {"id": "tail", "prompt": tail})
    cut = "prompts.max_prompt_tokens=20"
    ended = cli("decode", *tiny.options("cut", prompts, cut))
    assert ended.status == 0, ended.err
    assert "1 turn cut to the last tokens: long" in ended.out
    assert summary("cut")["num_truncated"] == 1
    long, short = read_traces(Path("cut"))
    assert long.num_prompt_tokens == short.num_prompt_tokens == 20
    assert long.output_ids == short.output_ids
    assert cli("record", "run=cut", "output=recording").status == 0
    ended = cli("decode", *tiny.options("left", prompts, cut, "prompts.skip_too_long=true"))
    assert [trace.prompt_id for trace in read_traces(Path("left"))] == ["tail"]
    short_cut = ("prompts.max_prompt_tokens=5", "prompts.skip_too_long=true")
    ended = cli("decode", *tiny.options("none", prompts, *short_cut))
    assert ended.status == 2
    assert "all 2 prompts have 6 tokens or more" in ended.err


def test_options_reach_the_template(cli: CommandLine, tiny: Tiny) -> None:
    prompts = write_prompts({"id": "a", "messages": [{"role": "user", "content": "def"}]})
    chat = with_tokenizer(tiny, "chat", chat_template=CHAT)
    ended = cli("decode", *tiny.options("run", chat, prompts, "keep_candidates=0"))
    assert "  | [user]def[plain]" in ended.out.splitlines()
    moody = ["prompts.template_options={mood: low}", "keep_candidates=0"]
    Path("low").write_text("a file by chance")
    ended = cli("decode", *tiny.options("moody", chat, prompts, *moody))
    assert "  | [user]def[low]" in ended.out.splitlines()
    provenance = json.loads(Path("moody/provenance.json").read_text())
    assert not [name for name in provenance["files"] if "template_options" in name]
    ended = cli("decode", *tiny.options("run", chat, prompts, *moody))
    assert "holds a run of other options" in ended.err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("prompts.template_options=[mood]", "prompts.template_options=['mood']: expected options"),
        (
            "prompts.template_options=low",
            "prompts.template_options='low': expected options by name",
        ),
        ("prompts.template_options={tools: []}", "'tools' is not the template's to know"),
        ("prompts.template_options={tokenize: true}", "'tokenize' is not the template's to know"),
        (
            "prompts.template_options={mood: low}",
            "goes through none; expected prompts.chat_templat",
        ),
        ("prompts.max_prompt_tokens=0", "prompts.max_prompt_tokens=0: expected an integer >= 1"),
        ("prompts.skip_too_long=yep", "prompts.skip_too_long='yep': expected true or false"),
        ("prompts.revision=main", "prompts.revision='main': "),
        ("prompts.config=main", "prompts.config='main': "),
        ("prompts.field=question", "expected the field 'question', prompts.field"),
    ],
)
def test_what_cannot_be_heeded_is_refused(
    cli: CommandLine, tiny: Tiny, option: str, said: str
) -> None:
    ended = cli("decode", *tiny.options("run", option))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert said in line


def test_tokens_beyond_the_embedding_are_found_before(cli: CommandLine, tiny: Tiny) -> None:
    rows = {"id": "fine", "prompt": "def"}, {"id": "bad", "prompt": "def <new40> x"}
    few = with_tokenizer(tiny, "few", tokens=[f"<new{number}>" for number in range(50)])
    ended = cli("decode", *tiny.options("run", few, write_prompts(*rows)))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: asked.jsonl:2: prompt bad: token 3")
    assert "'<new40>' is beyond the verifier's embedding of 300 tokens" in line
    assert not Path("run/traces.jsonl").exists()


def test_an_end_that_only_the_tokenizer_knows_is_noted(cli: CommandLine, tiny: Tiny) -> None:
    ended = cli("decode", *tiny.options("run"))
    assert "note: texts go on behind" not in ended.out
    other = with_tokenizer(tiny, "other", eos_token="add")
    ended = cli("decode", *tiny.options("run2", other))
    assert "note: texts go on behind add, the tokenizer's end" in ended.out


TOUCHY = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content and 'touchy' in messages[0]"
    ".content %}{{ raise_exception('no such answer') }}{% endif %}{{ m.content }}\n{% endfor %}"
)


def test_a_turn_that_the_template_refuses_ends_that_conversation_only(
    cli: CommandLine, tiny: Tiny
) -> None:
    """Known only in the middle of the run, by what the model answered."""
    chat = with_tokenizer(tiny, "chat", chat_template=TOUCHY)
    turns = ["def", "more", "and more"]
    prompts = write_prompts(
        {"id": "touchy", "turns": ["touchy", *turns[1:]]}, {"id": "calm", "turns": turns}
    )
    options = tiny.options("run", chat, prompts, "batch=2")
    ended = cli("decode", *options)
    assert ended.status == 0, ended.err
    line = "2 turns not asked, since the chat template refuses the answers before: touchy#1"
    assert f"{line}, touchy#2" in ended.out
    traces = {(t.prompt_id, t.turn): t for t in read_traces(Path("run"))}
    refused = {name for name, trace in traces.items() if trace.finish_reason == "refused"}
    assert len(traces) == 6
    assert refused == {("touchy", 1), ("touchy", 2)}
    assert all(trace.output_ids for name, trace in traces.items() if name not in refused)
    assert summary("run")["num_unanswered"] == 2
    assert "complete" in cli("decode", *options).out
    assert cli("record", "run=run", "output=recording").status == 0


def test_options_of_a_row_go_before_those_of_the_run(cli: CommandLine, tiny: Tiny) -> None:
    """As in TRL; also as JSON, since tables cannot hold objects of unlike shapes."""
    message = {"messages": [{"role": "user", "content": "def"}]}
    own = {"id": "own", **message, "chat_template_kwargs": {"mood": "own"}}
    chat = with_tokenizer(tiny, "chat", chat_template=CHAT)
    prompts = write_prompts(own)
    ended = cli(
        "decode", *tiny.options("run", chat, prompts, "prompts.template_options={mood: low}")
    )
    assert "  | [user]def[own]" in ended.out.splitlines()
    written = write_prompts({**own, "chat_template_kwargs": '{"mood": "json"}'})
    assert "  | [user]def[json]" in cli("decode", *tiny.options("json", chat, written)).out
    for wrong, said in (({"tokenize": True}, "'tokenize' is not the template's"), (3, "expected")):
        bad = write_prompts({**own, "chat_template_kwargs": wrong})
        ended = cli("decode", *tiny.options("bad", chat, bad))
        assert ended.status == 2
        assert "chat_template_kwargs" in ended.err
        assert said in ended.err
