"""Is a run known by everything that decides its numbers, and by nothing else?

    python -m tests.identity_fuzz --changes 200 --respellings 50 --seed 0

Runs of several kinds are decoded once: a draft model on a measured tree, heads, the text of a run,
and a proposer and a rule of one's own. Then single changes are made, one after another: a byte of
any file that a run reads, an element of a tensor, an option, a line of a plug-in. Each must make
another run (or be refused); undone, it is the old run again. And the same runs are written in other
words, from other folders, with copies of their files: none of that may make another run.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import specdec
from specdec.core.digest import inputs_of
from tests.support.importing import forget_modules

ZOO = Path(specdec.__file__).parent / "zoo"
PROPOSER = """from lab.constants import LENGTH
from specdec.proposer.ngram import NGram


class Mine(NGram):
    def __init__(self, gamma, length=0):
        super().__init__(gamma, max_ngram=LENGTH + length)


class Other(Mine):
    pass
"""
RULE = """from specdec.verification.match import Match


class Mine(Match):
    pass
"""
# What may be said instead of what a run was told, or added to it.
OPTIONS = (
    *("sampling.temperature=0.5", "sampling.top_k=3", "sampling.top_p=0.9", "sampling.min_p=0.1"),
    *("max_new_tokens=5", "stop_strings=[x]", "batch=2", "seed=1", "seed=2", "dtype=bfloat16"),
    *("prompts.limit=1", "prompts.chat_template=raw", "attention=eager", "judges=[match]"),
)
OWN_OPTIONS = {
    "draft": ("tree.num_nodes=3", "tree.estimate=product", "tree.max_depth=2", "tree=chain"),
    "heads": ("tree.gamma=2", "proposer.force=true", "proposer=ngram"),
    "recorded": ("tree.gamma=2", "proposer.accuracy=0.5", "proposer.seed=7"),
    "mine": ("tree.gamma=2", "proposer.length=1", "proposer._target_=lab.mine.Other"),
}
# What decides nothing: respellings that hold for all kinds of runs.
NEUTRAL = (
    *("sampling.temperature=1.0", "sampling.temperature=1e0", "sampling.top_p=1", "seed=0"),
    *("sampling.min_p=0", "batch=1", "keep_candidates=1", "dtype=float32", "device=cpu"),
    *(
        "verifier.dtype=float32",
        "tracker=jsonl",
        "stop_strings=null",
        "ignore_eos=false",
        "judges=[]",
    ),
    *("'max_new_tokens=4'", "prompts.limit=+2", "++seed=0", "attention=null"),
)


@dataclass(frozen=True)
class Kind:
    """A run that was decoded, and what it was told; files by option."""

    name: str
    plug_ins: Sequence[str]
    files: Mapping[str, Path]
    code: Sequence[Path] = ()

    def overrides(self, files: Mapping[str, object] | None = None) -> list[str]:
        """Return its command line, with other names for its files."""
        named = {**self.files, **(files or {})}
        return [
            *self.plug_ins,
            *(f"{option}={path}" for option, path in named.items()),
            *("sampling.temperature=1", "max_new_tokens=4", "prompts.limit=2"),
        ]


@dataclass
class Lab:
    """A folder with all files, and what was found wrong."""

    root: Path
    rng: random.Random
    wrong: list[str] = field(default_factory=list[str])

    def command(self, overrides: Sequence[str], *more: str) -> tuple[int, str, str]:
        """Run `decode` as a new process would: without what Python remembers of the plug-ins."""
        from hydra.core.global_hydra import GlobalHydra

        from specdec.command.doors import decode

        forget_modules(self.root)
        GlobalHydra.instance().clear()
        out, err = StringIO(), StringIO()
        options = [f"output={self.root / 'sweep'}", "--config-dir", str(self.root / "conf")]
        before, sys.argv = sys.argv, ["decode", "-m", *options, *overrides, *more]
        status: object = 0
        try:
            with redirect_stdout(out), redirect_stderr(err):
                decode()
        except SystemExit as ending:
            status = ending.code or 0
        finally:
            sys.argv = before
        return int(str(status)), out.getvalue(), err.getvalue()

    def is_there(self, overrides: Sequence[str]) -> bool | None:
        """Whether a command line is a run that is complete; None if it is refused."""
        status, out, err = self.command(overrides, "--dry-run")
        if status == 0:
            return "1 complete, 0 to run" in out
        assert err.startswith("error: "), err
        return None


@contextmanager
def disturbed(file: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Change a file in place, and keep its size and its times where the change allows that."""
    before, times = file.read_bytes(), file.stat()
    with file.open("r+b") as content:
        content.write(change(before))
        content.truncate()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def prepare(root: Path, rng: random.Random) -> tuple[Lab, list[Kind]]:
    """Lay out the files, and decode one run of each kind."""
    for name in ("verifier", "draft", "medusa"):
        shutil.copytree(ZOO / name, root / name)
    rows = [f'{{"id": "{name}", "prompt": "import {name}\\n"}}' for name in ("os", "re", "sys")]
    (root / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    paths = [[0], [0, 0], [1], [0, 1]]
    held = {"paths": paths, "counts": [4, 3, 2, 1], "expected_block_efficiency": 2.0}
    tree = {"joint": held, "product": {**held, "paths": paths[::-1][2:] + paths[2:]}}
    tree["product"] = {**held, "paths": [[0], [1], [0, 0], [0, 1]]}
    (root / "tree.json").write_text(json.dumps({**tree, "num_positions": 10}))
    write_plug_ins(root)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # which would be looked up by times of whole seconds
    lab = Lab(root, rng)
    shared = {"verifier.path": root / "verifier", "prompts.path": root / "prompts.jsonl"}
    draft = {**shared, "draft.path": root / "draft", "tree.path": root / "tree.json"}
    kinds = [
        Kind("draft", ["proposer=draft_model", "tree=calibrated", "tree.num_nodes=4"], draft),
        Kind("heads", ["proposer=medusa"], {**shared, "proposer.path": root / "medusa"}),
        Kind(
            "mine",
            ["proposer=mine", "verification=own"],
            shared,
            [*(root / "lab").glob("*.py"), root / "lab" / "constants.py"],
        ),
    ]
    for kind in kinds:
        decode(lab, kind.overrides())
    source = root / "recorded"
    run = next((root / "sweep").glob("*/traces.jsonl")).parent
    shutil.copytree(run, source)
    files = {**shared, "proposer.path": source}
    kinds.append(Kind("recorded", ["proposer=recorded", "proposer.seed=3"], files))
    decode(lab, kinds[-1].overrides())
    return lab, kinds


def write_plug_ins(root: Path) -> None:
    """Write a proposer and a rule of one's own, and what chooses them."""
    (root / "lab").mkdir()
    (root / "lab/__init__.py").write_text('"""A laboratory."""\n')
    (root / "lab/constants.py").write_text("LENGTH = 2\nOTHER = 3\n")
    (root / "lab/mine.py").write_text(PROPOSER)
    (root / "lab/rule.py").write_text(RULE)
    for group, name, text in (
        ("proposer", "mine", "_target_: lab.mine.Mine\ngamma: ${tree.gamma}\nlength: 0\n"),
        ("proposer", "same", "_target_: lab.mine.Mine\ngamma: ${tree.gamma}\nlength: 0\n"),
        ("verification", "own", "rule:\n  _target_: lab.rule.Mine\nallow_lossy: false\n"),
    ):
        (root / "conf" / group).mkdir(parents=True, exist_ok=True)
        (root / "conf" / group / f"{name}.yaml").write_text(text)


def decode(lab: Lab, overrides: Sequence[str]) -> None:
    """Decode a run."""
    status, out, err = lab.command(overrides)
    assert status == 0, (overrides, out, err)
    assert lab.is_there(overrides), f"{overrides}: decoded, and not found again"


def change(lab: Lab, kind: Kind) -> str:
    """Make one change to what decides a run, and see that it is another one then."""
    what = lab.rng.choice(["byte", "byte", "tensor", "option", "line" if kind.code else "byte"])
    if what == "option":
        option = lab.rng.choice((*OPTIONS, *OWN_OPTIONS[kind.name]))
        done = f"option {option}"
        same = lab.is_there([*kind.overrides(), option])
    else:
        file = lab.rng.choice(_files(kind, what))
        edit = {"byte": _flipped, "tensor": _retuned, "line": _edited}[what]
        with disturbed(file, lambda content: edit(content, lab.rng)):
            done = f"{what} of {file.relative_to(lab.root)}"
            same = lab.is_there(kind.overrides())
    if same:
        lab.wrong.append(f"{kind.name}: {done} changed, and it is the old run")
    if lab.rng.random() < 0.1 and not lab.is_there(kind.overrides()):
        lab.wrong.append(f"{kind.name}: {done} was undone, and the run is not found again")
    return done


def _files(kind: Kind, what: str) -> list[Path]:
    if what == "line":
        return list(kind.code)
    every: list[Path] = []
    for path in kind.files.values():
        every += inputs_of(path) if path.is_dir() else [path]
    return [each for each in every if what == "byte" or each.suffix == ".safetensors"]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    )


def _retuned(content: bytes, rng: random.Random) -> bytes:
    """Change one element of one tensor."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    start, end = header[name]["data_offsets"]
    place = 8 + length + rng.randrange(start, end)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _edited(content: bytes, rng: random.Random) -> bytes:
    """Change one line, so that it means something else or just reads otherwise."""
    lines = content.decode().split("\n")
    place = rng.randrange(len(lines))
    lines[place] += rng.choice(["  # said otherwise", "\n\nMORE = 1"])
    return "\n".join(lines).encode()


def respell(lab: Lab, kind: Kind, number: int) -> str:
    """Say the same in other words, and see that it is the same run."""
    ways: list[Callable[[], tuple[str, bool | None]]] = [
        lambda: _said(lab, kind, neutral=True),
        lambda: _said(lab, kind, shuffled=True),
        lambda: _relative(lab, kind),
        lambda: _copied(lab, kind, number),
        lambda: _linked(lab, kind, number),
        lambda: _aside(lab, kind),
    ]
    done, same = ways[number % len(ways)]()
    if not same:
        lab.wrong.append(f"{kind.name}: {done}, and it is another run")
    return done


def _said(
    lab: Lab, kind: Kind, neutral: bool = False, shuffled: bool = False
) -> tuple[str, bool | None]:
    overrides = kind.overrides()
    if kind.name == "mine" and lab.rng.random() < 0.5:
        overrides[0] = "proposer=same"
    more = lab.rng.sample(NEUTRAL, 3) if neutral else []
    more = [text.strip("'") for text in more]
    if shuffled:
        lab.rng.shuffle(overrides)
        quoted = [text.split("=", 1) for text in overrides]
        overrides = [f"{n}='{v}'" if n.endswith("path") else f"{n}={v}" for n, v in quoted]
    return f"said as {shlex.join([*overrides, *more])}", lab.is_there([*overrides, *more])


def _relative(lab: Lab, kind: Kind) -> tuple[str, bool | None]:
    """Name files as seen from elsewhere, in roundabout ways."""
    before = Path.cwd()
    os.chdir(lab.rng.choice([lab.root, lab.root / "conf", lab.root.parent]))
    try:
        named = {option: os.path.relpath(path) for option, path in kind.files.items()}
        detour = {o: f"./{n}" + ("/" if kind.files[o].is_dir() else "") for o, n in named.items()}
        chosen = lab.rng.choice([named, detour])
        return f"in {Path.cwd().name} as {chosen}", lab.is_there(kind.overrides(chosen))
    finally:
        os.chdir(before)


def _copied(lab: Lab, kind: Kind, number: int) -> tuple[str, bool | None]:
    option, path = lab.rng.choice(list(kind.files.items()))
    copy = lab.root / f"copies-{number}" / path.name
    copy.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    return f"{option} copied to {copy}", lab.is_there(kind.overrides({option: copy}))


def _linked(lab: Lab, kind: Kind, number: int) -> tuple[str, bool | None]:
    option, path = lab.rng.choice(list(kind.files.items()))
    link = lab.root / f"link-{number}{path.suffix}"
    link.symlink_to(path)
    return f"{option} linked as {link}", lab.is_there(kind.overrides({option: link}))


def _aside(lab: Lab, kind: Kind) -> tuple[str, bool | None]:
    """Touch everything, and write what nobody decodes with."""
    for path in kind.files.values():
        for file in inputs_of(path) if path.is_dir() else [path]:
            os.utime(file)
        if path.is_dir():
            (path / "README.md").write_text(f"# Read me {lab.rng.random()}\n")
            (path / ".cache").write_text("hidden")
    return "touched, and a card written", lab.is_there(kind.overrides())


def fuzz(root: Path, changes: int, respellings: int, seed: int, talk: bool = False) -> list[str]:
    """Return what was wrong: changes that made no other run, respellings that made one."""
    lab, kinds = prepare(root, random.Random(seed))
    for number in range(changes):
        done = change(lab, kinds[number % len(kinds)])
        if talk:
            print(f"change {number + 1}: {kinds[number % len(kinds)].name}, {done}")
    for number in range(respellings):
        kind = lab.rng.choice(kinds)
        done = respell(lab, kind, number)
        if talk:
            print(f"respelling {number + 1}: {kind.name}, {done}")
    sys.path.remove(str(root))
    return lab.wrong


def main() -> None:
    """Fuzz, say what was wrong, and exit with 1 if anything was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--respellings", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        wrong = fuzz(root, arguments.changes, arguments.respellings, arguments.seed, talk=True)
    print("\n".join(wrong))
    print(f"{arguments.changes} changes, {arguments.respellings} respellings: {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
