"""Texts that repeat themselves as users have them, and a verifier that has learnt to go on so.

A base model of code is not asked: a prompt holds a text and the beginning of what is to come.

* `copied`: a text that stands there twice begins a third time;
* `edited`: a text begins again with one of its names replaced by another;
* `listed`: a table of the names of a text, of which the beginning is there;
* `tested`: tests of those names, one after the other.

The embedded verifier does not copy: it has seen each file of its training once. So it is trained
for some more steps, on such texts of its own training files, and on the files as they are.
"""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from specdec.core.jsonl import write_jsonl
from specdec.prompts import Message, Prompt
from specdec.proposer.automaton import SuffixAutomaton
from specdec.zoo.stdlib import held_out_files, training_files

LINES = range(4, 11)  # of an excerpt
MOST_CHARACTERS = 320
NAME = re.compile(r"\b[a-z_]{4,14}\b")
SHOWN = {"copied": 2, "edited": 1, "listed": 6, "tested": 5}  # whole parts of a prompt
PARTS = {"copied": 5, "edited": 4, "listed": 30, "tested": 30}  # of what is learnt from, at most
DOCUMENTS, PLAIN = 120, 2  # of each pattern; excerpts of a plain one
STEPS, LEARNING_RATE = 150, 1.5e-3


def copied(text: str, other: str) -> Iterator[str]:
    """Yield a text again and again."""
    while True:
        yield f"{text}\n"


def edited(text: str, other: str) -> Iterator[str]:
    """Yield a text, and then with its most frequent name replaced by one of another text."""
    yield f"{text}\n"
    old, new = names(text)[0], names(other)[0]
    renamed = re.sub(rf"\b{old}\b", new, text)
    while True:
        yield f"{renamed}\n"


def listed(text: str, other: str) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "NAMES = {\n"
    for number, name in enumerate(sorted(names(text + other))):
        yield f'    "{name}": Name("{name}", {number}),\n'


def tested(text: str, other: str) -> Iterator[str]:
    """Yield tests."""
    yield "class Tests(unittest.TestCase):\n"
    for name in sorted(names(text + other)):
        yield f"    def test_{name}(self):\n        self.assertTrue(has_{name}(self.text))\n\n"


Pattern = Callable[[str, str], Iterator[str]]
PATTERNS: tuple[Pattern, ...] = (copied, edited, listed, tested)


def names(text: str) -> list[str]:
    """Return the words of a text, the most frequent first."""
    return [name for name, _ in Counter(NAME.findall(text)).most_common()]


def excerpts(files: list[Path], noise: random.Random) -> Iterator[str]:
    """Yield runs of lines that have names in them, of files and from places drawn by chance."""
    while True:
        text = noise.choice(files).read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        first = noise.randrange(len(lines) + 1)
        excerpt = "".join(lines[first : first + noise.choice(LINES)])[:MOST_CHARACTERS].strip("\n")
        if len(names(excerpt)) >= LINES.start:
            yield f"{excerpt}\n"


def learnt(seed: int) -> Iterator[dict[str, str]]:
    """Yield what the verifier learns from: a text of each pattern and some plain code, by turns."""
    noise = random.Random(seed)
    found = excerpts(training_files(), noise)
    for text, other in islice(zip(found, found, strict=True), DOCUMENTS):  # two and two
        for pattern in PATTERNS:
            yield {"text": "".join(islice(pattern(text, other), PARTS[pattern.__name__]))}
        yield {"text": "".join(islice(found, PLAIN))}


def repetitive(per_pattern: int, seed: int) -> list[Prompt]:
    """Return prompts of held-out files, of each pattern as many, by turns; each ends within it."""
    texts = excerpts(held_out_files(), random.Random(seed))
    found: list[Prompt] = []
    for number, (text, other) in enumerate(islice(zip(texts, texts, strict=True), per_pattern)):
        for pattern in PATTERNS:
            parts = list(islice(pattern(text, other), SHOWN[pattern.__name__] + 1))
            prompt = "".join(parts[:-1]) + beginning(parts[-1])
            message = Message("user", prompt)
            name = f"{pattern.__name__}:{number}"
            found.append(Prompt(name, pattern.__name__, ((message,),), raw=True))
    return found


def beginning(text: str) -> str:
    """Return the first third of a text, to the end of a line where it has several."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[: max(1, len(lines) // 3)])


def copying_verifier(folder: Path, seed: int) -> Path:
    """Return the verifier that copies; it is trained unless it is there, for some minutes."""
    output = folder / "verifier"
    if (output / "config.json").is_file():
        return output
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "learnt.jsonl", learnt(seed))
    command = [
        *(sys.executable, "-m", "specdec", "train", "train=lm", "train.init_path=zoo:verifier"),
        *(f"data.path={folder / 'learnt.jsonl'}", "data.held_out_path=zoo:held_out"),
        *("train.block_length=256", "trainer.per_device_train_batch_size=4"),
        *(f"max_steps={STEPS}", f"trainer.learning_rate={LEARNING_RATE}"),
        *("trainer.save_best=false", "trainer.save_steps=100", f"trainer.eval_steps={STEPS}"),
        *("trainer.eval_on_start=false", "train.eval_tokens=10000"),
        *(f"seed={seed}", f"output={output}"),
    ]
    subprocess.run(command, check=True)
    return output


def datastore(folder: Path) -> str:
    """Return a datastore of the zoo's training text; it is built unless it is there."""
    output = folder / "datastore"
    if not output.exists():
        options = ["data.path=zoo:train", f"output={output}"]
        subprocess.run([sys.executable, "scripts/build_datastore.py", *options], check=True)
    return str(output)


def foretelling(prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Iterator[bool]:
    """Yield for each token of a text whether it followed the longest suffix most often."""
    text = SuffixAutomaton()
    text.extend(prompt_ids)
    for token in output_ids:
        longest = next(text.matches(), None)
        following = longest.place.goes_on() if longest else ()
        yield bool(following) and following[0][0] == token
        text.extend([token])
