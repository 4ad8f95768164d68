"""Are a run's texts lossless? `python experiments/check.py run=outputs/decode/RUN`."""

from specdec.command.doors import check

if __name__ == "__main__":
    check()
