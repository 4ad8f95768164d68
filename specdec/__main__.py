"""The command `specdec`: which command does what one wants to do; `specdec NAME ...` runs it."""

import difflib
import sys
from importlib import import_module

from specdec.version import version_line

EXIT_USER_ERROR = 2
# What one wants to do, and a command line that does it.
USES = {
    "compare proposers, trees or rules, with intervals": (
        "compare",
        """'arms=["proposer=none","proposer=ngram","proposer=draft_model tree.gamma=6"]'""",
    ),
    "decode my prompts with one of them": ("decode", "proposer=draft_model prompts.path=my.jsonl"),
    "sweep over options, and resume where that was interrupted": (
        "decode",
        "-m proposer=ngram,draft_model tree.gamma=2,4,8 output=outputs/mine",
    ),
    "train heads or a draft model": (
        "train",
        "train=medusa loss=kl data.path=zoo:train data.held_out_path=zoo:held_out output=my_heads",
    ),
    "measure which tree to grow": ("calibrate", "data.path=zoo:held_out output=tree.json"),
    "record texts, once": ("record", "sampling.temperature=1 output=outputs/recording"),
    "predict acceptance from them without decoding": ("replay", "recording=outputs/recording"),
    "see what a model takes in memory, and what fits it": (
        "describe",
        "verifier.path=zoo:verifier context=512 batch=8 dtype=float16",
    ),
    "see one text come about, step by step": ("explain", "proposer=draft_model"),
    "measure what steps cost here, to predict speed": ("costs", "output=outputs/costs.json"),
    "check that a run is lossless": ("check", "run=outputs/decode/RUN"),
    "make a report of a folder of runs": ("report", "outputs/mine"),
}
COMMANDS = list(dict.fromkeys(command for command, _ in USES.values()))


def main() -> None:
    """Console script `specdec`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
    elif arguments[0] == "--version":
        print(version_line())
    elif arguments[0] in COMMANDS:
        sys.argv = [f"specdec-{arguments[0]}", *arguments[1:]]
        getattr(import_module("specdec.command.doors"), arguments[0])()
    else:
        near = difflib.get_close_matches(arguments[0].removeprefix("specdec-"), COMMANDS, n=1)
        hint = f"did you mean specdec {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: {arguments[0]}: no such command; {hint}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def overview() -> str:
    """Return what `specdec` prints."""
    lines = [version_line(), "", "To ..."]
    for use, (command, options) in USES.items():
        lines += [f"  {use}:", f"      specdec {command} {options}"]
    lines += ["", "specdec COMMAND --help lists all options of a command, with more examples."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
