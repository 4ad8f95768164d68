"""Decode a set of prompts with one arm: `python experiments/decode.py proposer=ngram`."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from specdec.experiments.app import build, run

from specdec.core.errors import UserError


def task(config: DictConfig) -> float:
    """Decode, write the run directory, print a table; returns block efficiency for sweepers."""
    # Here and not above, because torch takes seconds to import and --help should not wait.
    from specdec.experiments import arm as arms
    from tqdm import tqdm

    from specdec.metrics import Tally
    from specdec.report.table import Row, print_table

    folder = Path(HydraConfig.get().runtime.output_dir)
    if "arms" in config:
        raise UserError("arms: this is for several arms; run specdec-compare with the same options")
    arms.check_options(config)
    prompts = arms.build_prompts(config)
    arm = arms.build_arm(config, build(config.verifier))
    arm.check(prompts)
    arms.announce([arm], prompts)
    arm.warm_up(prompts[0])
    traces = []
    with arm.run_dir(folder) as run_dir:
        turns = sum(prompt.num_turns for prompt in prompts)
        try:
            for trace in tqdm(arm.decode(prompts), total=turns, desc=arm.name, disable=None):
                traces.append(trace)
                run_dir.append(trace)
        except KeyboardInterrupt:
            print(f"interrupted after {len(traces)} of {turns} texts; those in {folder} are valid")
            raise
        finally:
            if traces:
                run_dir.summarize(arms.summary_of(arm, Tally.of(traces)))
    summary = arms.summary_of(arm, Tally.of(traces))
    print_table([Row(arm.name, arm.rule, summary)], f"{len(prompts)} prompts")
    print(f"run directory: {folder}")
    return summary["block_efficiency"]["value"]


def main() -> None:
    """Console script `specdec-decode`."""
    run(task, "decode")


if __name__ == "__main__":
    main()
