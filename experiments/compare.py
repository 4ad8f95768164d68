"""Compare proposers, trees and rules on the same prompts, interleaved, with intervals."""

from specdec.command.doors import compare

if __name__ == "__main__":
    compare()
