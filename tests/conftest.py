"""A tiny model family for the whole session, and entry points that run inside this process.

Nothing is downloaded, nothing needs the embedded zoo, and nothing wants more than one thread.
"""

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest

from tests.support.importing import forget_modules
from tests.support.running import CommandLine, Tiny, run_in_process, write_tiny

# Before torch and huggingface_hub are imported, since they read these then; subprocesses inherit
# them. Tiny tensors want one thread, and a path that is mistyped must not be looked up on the Hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the entry points do, but before the import
if "XDG_CACHE_HOME" not in os.environ:  # workers have that of the process that starts them
    os.environ["XDG_CACHE_HOME"] = mkdtemp(prefix="specdec-tests-")
    atexit.register(rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


# What decodes, trains and reports as a user does, or samples and enumerates for seconds.
WHOLE = (
    *(
        "command",
        "training",
        "online",
        "test_command.py",
        "test_configs.py",
        "test_disturbances.py",
    ),
    *("test_incremental_benchmark.py", "test_package.py", "test_zoo.py"),
    "calibration/test_best_tree.py",
    *("calibration/test_ranks.py", "decoding/test_claims.py"),
    *("decoding/test_copies_of_the_verifier.py", "decoding/test_exact_loop.py"),
    *("decoding/test_generation_config.py", "decoding/test_judges.py"),
    *("decoding/test_loop_mutations.py", "decoding/test_lossless_combinations.py"),
    *("decoding/test_other_tokenizers.py", "proposer/test_draft_tokens.py"),
    *("decoding/test_lossless_multistep.py", "lm/test_adapter.py", "lm/test_greedy_equality.py"),
    *("lm/test_encoder_decoder.py", "lm/test_images_and_text.py", "lm/test_odd_checkpoints.py"),
    "lm/test_remote_code.py",
    *("lm/test_revision.py", "lm/test_unembedding.py", "metrics/test_metrics_speed.py"),
    *("prompts/test_conversations.py", "proposer/test_chained.py", "proposer/test_growth.py"),
    *("proposer/test_unlike_vocabularies.py", "recording/test_recording_folder.py"),
    *("replaying/test_closed_forms.py", "replaying/test_coverage.py"),
    *("replaying/test_every_column.py", "replaying/test_every_field.py"),
    *("replaying/test_expected_steps.py", "report/test_comparison.py", "report/test_exports.py"),
    *("report/test_large_report.py", "report/test_page.py", "report/test_plots.py"),
    *("report/test_report_in_browser.py", "results/test_options.py", "results/test_provenance.py"),
    *("runtime/test_kernels.py", "runtime/test_thin_products.py"),
    *("verification/test_dominance.py", "verification/test_estimators.py"),
    *("verification/test_exact.py", "verification/test_lossy_rules.py"),
    "verification/test_numbers.py",
)

# What takes half a minute each: processes that are killed, samples that are large. CI runs it.
THOROUGH = (
    *("command/test_decode_processes.py", "command/test_every_pair.py"),
    *("command/test_examples.py", "decoding/test_copies_of_the_verifier.py"),
    *("decoding/test_lossless_combinations.py", "decoding/test_lossless_multistep.py"),
    *("replaying/test_closed_forms.py", "replaying/test_coverage.py"),
    *("replaying/test_expected_steps.py", "test_disturbances.py", "test_package.py"),
    *("training/test_joint.py", "training/test_processes.py", "training/test_survival.py"),
    "verification/test_dominance.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Leave tests that take long to those who ask for them: `make test-all`, `pytest -m slow`."""
    gone = [name for name in (*WHOLE, *THOROUGH) if not (Path(__file__).parent / name).exists()]
    assert not gone, f"tests/conftest.py marks what is not there: {gone}"
    if not config.option.markexpr:
        named = any("::" in text or text.endswith(".py") for text in config.args)
        config.option.markexpr = "not slow" if named else "not slow and not thorough"


def is_of(names: tuple[str, ...], path: Path) -> bool:
    found = path.relative_to(Path(__file__).parent)
    return any(found.is_relative_to(each) for each in names)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make quick` leaves out."""
    left_out = "not whole" in config.option.markexpr and is_of(WHOLE, collection_path)
    return True if left_out else None


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_of(WHOLE, item.path):
            item.add_marker("whole")
        if is_of(THOROUGH, item.path):
            item.add_marker("thorough")


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test start a process or train unless it is marked, so that `make quick` stays so."""
    if request.node.get_closest_marker("whole"):
        return

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a quick test starts no process and trains nothing: mark it `whole`")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    if "specdec.training.trainer" in sys.modules:
        monkeypatch.setattr("specdec.training.trainer.Trainer.fit", refuse)


@pytest.fixture(autouse=True)
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget what a test wrote and imported, so that the next may write it in another way."""
    before = set(sys.modules)
    yield
    forget_modules(tmp_path_factory.getbasetemp(), set(sys.modules) - before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Write the models that all tests of commands share."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def cli() -> CommandLine:
    """Run an entry point, `cli("compare", "batch=2")`, without paying for a new process."""
    return run_in_process


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a test neither write into the checkout nor find anything there by accident."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Forget accelerate's process-wide state, so that tests may ask for other precisions."""
    from accelerate.state import AcceleratorState, GradientState

    def forget() -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    yield
    forget()


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let the decoder's clock go on by `pace` seconds a look: three looks a step, one before."""
    clock = SimpleNamespace(pace=1.0, now=0.0, looks=0)

    def now() -> float:
        clock.looks += 1
        clock.now += clock.pace
        return clock.now

    monkeypatch.setattr("specdec.decoding.decoder.now", now)
    return clock
