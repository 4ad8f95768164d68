"""A plot shows the numbers of the tables, says of how many prompts, and drops nothing silently."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from specdec.metrics import DEFINITIONS, Tally
from specdec.report.collection import Collection, ReportedArm
from specdec.report.comparison import Compared
from specdec.report.plots import Plot, figures, limits, save, svg
from specdec.report.plots.canvas import INK, RIGHT, WIDTH, look_of
from specdec.report.plots.frontier import Spot, undominated
from specdec.report.plots.limits import LINES_PER_PLOT
from tests.support.fabricated import easy_traces, make_config, write_run
from tests.support.metric_traces import make_step, make_trace
from tests.support.swept import (
    Results,
    gathered,
    write_lossy,
    write_replayed,
    write_sweep,
    write_trained,
)

Drawn = tuple[Collection, Results, dict[str, Plot]]


def draw(folder: Path, force: bool = False) -> Drawn:
    collection, results = gathered(folder, force)
    return collection, results, figures(collection, results)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(write_sweep(tmp_path_factory.mktemp("sweep")))


def axes_of(plot: Plot) -> Axes:
    (axes,) = plot.figure.axes
    return axes


def marks(plot: Plot) -> list[tuple[float, float]]:
    """List the points of all lines that have markers; the dotted line has none."""
    lines = [line for line in axes_of(plot).lines if line.get_marker() != "None"]
    return sorted(
        (float(x), float(y))
        for line in lines
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    )


def bars(plot: Plot) -> list[tuple[float, float]]:
    """List the ends of all intervals."""
    drawn = [each for each in axes_of(plot).collections if isinstance(each, LineCollection)]
    ends = [sorted(segment[:, 1]) for each in drawn for segment in each.get_segments()]
    return sorted((float(low), float(high)) for low, high in ends)


def legend(plot: Plot) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in plot.figure.legends[0].get_texts()]


def drafting(results: Results) -> list[Compared]:
    return [each for _, arms in results for each in arms if not each.arm.is_baseline]


def test_all_plots_are_there_in_the_order_in_which_they_are_read(sweep: Drawn) -> None:
    assert list(sweep[2]) == [
        "block_efficiency_by_speed",
        "block_efficiency_by_speed-2",
        "block_efficiency_by_sampling.temperature",
        "speedup_by_sampling.temperature",
        "block_efficiency_by_tree.gamma",
        "speedup_by_tree.gamma",
        "block_efficiency_by_draft_tokens",
        "speedup_by_draft_tokens",
        *("acceptance_at_depth", "acceptance_at_depth-2"),
        *("reached_depth", "reached_depth-2"),
        "step_seconds",
    ]
    assert all(name == plot.name for name, plot in sweep[2].items())


@pytest.mark.parametrize("metric", ["block_efficiency", "speedup"])
@pytest.mark.parametrize("option", ["tree.gamma", "sampling.temperature"])
def test_lines_go_through_the_numbers_of_the_table(sweep: Drawn, option: str, metric: str) -> None:
    _, results, plots = sweep
    rows = [(each.arm.options[option], each.summary[metric]) for each in drafting(results)]
    plot = plots[f"{metric}_by_{option}"]
    assert marks(plot) == sorted((float(x), row["value"]) for x, row in rows)
    assert bars(plot) == sorted((row["low"], row["high"]) for _, row in rows)


def test_a_line_joins_arms_that_agree_in_everything_else(sweep: Drawn) -> None:
    plots = sweep[2]
    assert legend(plots["speedup_by_tree.gamma"]) == [
        "draft_model, chain, temperature=0",
        "ngram, temperature=0",
        "draft_model, chain, temperature=1",
        "ngram, temperature=1",
    ]
    lines: list[Any] = [
        line for line in axes_of(plots["speedup_by_tree.gamma"]).lines if np.size(line.get_xdata())
    ]
    assert [list(line.get_xdata()) for line in lines[:4]] == [[1, 2, 4]] * 4


def test_trees_are_compared_by_what_the_verifier_is_shown(sweep: Drawn) -> None:
    _, results, plots = sweep
    expected = [
        (each.summary["num_drafted"] / each.summary["num_steps"], each.summary["speedup"]["value"])
        for each in drafting(results)
    ]
    assert marks(plots["speedup_by_draft_tokens"]) == sorted(expected)


def test_one_tree_is_not_compared_with_itself(tmp_path: Path) -> None:
    write_sweep(tmp_path, gammas=(2,), temperatures=(0.0,))
    assert not [name for name in draw(tmp_path)[2] if name.endswith("by_draft_tokens")]


def test_depths_are_labelled_as_what_they_are(sweep: Drawn) -> None:
    _, results, plots = sweep
    axes = axes_of(plots["acceptance_at_depth"])
    ticks, labels = axes.get_xticks(), axes.get_xticklabels()
    assert {float(label.get_text()): tick for tick, label in zip(ticks, labels, strict=True)} == {
        depth: depth for depth in (1.0, 2.0, 3.0, 4.0)
    }
    first = [each for each in results[0][1] if not each.arm.is_baseline]
    for name in ("acceptance_at_depth", "reached_depth"):
        rows = [item for each in first for item in each.summary[name].items()]
        assert marks(plots[name]) == sorted((float(depth), row["value"]) for depth, row in rows)


def test_experts_are_drawn_where_they_were_counted(tmp_path: Path) -> None:
    """A line for each arm, through its means by the tokens of a forward."""
    step, small = make_step(1, 3), make_step(0, 1)
    counted = [
        replace(step, experts=(5, 8), forward_tokens=4),
        replace(step, experts=(6, 7), forward_tokens=4),
        replace(small, experts=(2, 3), forward_tokens=2),
    ]
    traces = [make_trace(f"prompt {number}", *counted) for number in range(12)]
    write_run(tmp_path / "counted", make_config("ngram", 3), traces)
    write_run(tmp_path / "not", make_config("draft_model", 3), easy_traces(12, seed=0))
    plots = draw(tmp_path)[2]
    plot = plots["experts_by_tokens"]
    assert marks(plot) == [(2.0, 2.5), (4.0, 6.5)]
    assert len(legend(plot)) == 1
    assert DEFINITIONS["experts_touched"] in plot.caption


def test_bars_add_up_to_a_step(sweep: Drawn) -> None:
    _, results, plots = sweep
    boxes: list[Any] = [patch for patch in axes_of(plots["step_seconds"]).patches]
    arms = [each.arm for _, compared in results for each in compared]
    assert len(boxes) == 3 * len(arms)
    for index, arm in enumerate(arms):
        names = ("propose_seconds", "verify_seconds", "other_seconds")
        steps = arm.tally.total("num_steps")
        widths = [box.get_width() for box in boxes[3 * index : 3 * index + 3]]
        assert widths == pytest.approx([1000 * arm.tally.total(n) / steps for n in names])
        assert boxes[3 * index + 1].get_x() == pytest.approx(widths[0])


def test_every_plot_says_what_it_shows_and_of_how_many_prompts(sweep: Drawn) -> None:
    for name, plot in sweep[2].items():
        assert re.search(r"n = (\d to )?6 prompts\.", plot.caption), name
        assert "95 %, bootstrap over prompts" in plot.caption, name
        assert any(meaning in plot.caption for meaning in DEFINITIONS.values()), name
        axes = axes_of(plot)
        assert axes.get_xlabel(), name
        assert axes.get_ylabel() or name == "step_seconds", name
    assert axes_of(sweep[2]["speedup_by_tree.gamma"]).get_xlabel() == "tree.gamma (tokens)"


def test_seeds_are_no_option(tmp_path: Path) -> None:
    for seed in (0, 1):
        for gamma in (1, 2):
            path = tmp_path / f"{gamma}-{seed}"
            write_run(path, make_config("ngram", gamma, seed=seed), easy_traces(4, seed, gamma))
    plots = draw(tmp_path)[2]
    assert not [name for name in plots if "seed" in name]
    assert len(marks(plots["block_efficiency_by_tree.gamma"])) == 2


def test_without_a_clock_no_speed_is_drawn(tmp_path: Path) -> None:
    """Tokens per second of one hour beside those of another would be taken for a comparison."""
    for gamma in (1, 2):
        config, traces = make_config("ngram", gamma), easy_traces(4, 0, gamma)
        write_run(tmp_path / f"{gamma}", config, traces, plain_step=None)
    plots = draw(tmp_path)[2]
    assert not [name for name in plots if "speed" in name or "tokens_per_second" in name]
    assert "step_seconds" in plots, "what a step takes is said of each arm alone"


def test_what_cannot_be_true_is_drawn_nowhere(tmp_path: Path) -> None:
    for gamma in (1, 2, 4):
        config, traces = make_config("ngram", gamma), easy_traces(6, 0, gamma)
        write_run(tmp_path / f"{gamma}", config, traces, plain_step=2.5 if gamma == 4 else 1.01)
    plots = draw(tmp_path)[2]
    wrong = "ngram, gamma=4"
    assert [x for x, _ in marks(plots["speedup_by_tree.gamma"])] == [1, 2]
    assert f"{wrong} (timings not comparable)" in plots["speedup_by_tree.gamma"].caption
    frontier = plots["block_efficiency_by_speed"]
    assert (len(marks(frontier)), wrong in frontier.caption) == (2, True)
    assert f"timings not comparable: {wrong}." in plots["step_seconds"].caption


def test_a_baseline_alone_has_no_lines(tmp_path: Path) -> None:
    write_run(tmp_path / "none", make_config("none"), easy_traces(4, 0, depth=0))
    assert list(draw(tmp_path)[2]) == ["step_seconds"]


def test_a_single_prompt_has_no_interval(tmp_path: Path) -> None:
    for gamma in (1, 2):
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), easy_traces(1, 0, gamma))
    plot = draw(tmp_path)[2]["block_efficiency_by_tree.gamma"]
    assert (len(marks(plot)), bars(plot)) == (2, [])
    assert "n = 1 prompt." in plot.caption


def test_many_lines_go_to_several_plots_of_one_scale(
    sweep: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINES_PER_PLOT", 4)
    plots = figures(sweep[0], sweep[1])
    names = ["speedup_by_sampling.temperature", "speedup_by_sampling.temperature-2"]
    assert [name for name in plots if name.startswith(names[0])] == names
    found = [legend(plots[name]) for name in names]
    assert [len(labels) for labels in found] == [4, 2]
    assert [label for labels in found for label in labels] == legend(sweep[2][names[0]])
    first, second = (axes_of(plots[name]) for name in names)
    assert (first.get_ylim(), first.get_xlim()) == (second.get_ylim(), second.get_xlim())
    assert [plots[name].part for name in names] == [1, 2]
    assert "(part 2 of 2)" in plots[names[1]].title


def test_no_two_lines_of_a_plot_look_alike_without_colour() -> None:
    looks = [look_of(index) for index in range(LINES_PER_PLOT)]
    assert len({look["marker"] for look in looks}) == LINES_PER_PLOT


def test_what_has_no_room_is_named(sweep: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = legend(sweep[2]["speedup_by_sampling.temperature"])
    monkeypatch.setattr(limits, "MAX_PARTS", 1)
    monkeypatch.setattr(limits, "LINES_PER_PLOT", 4)
    monkeypatch.setattr(limits, "BARS_PER_PLOT", 13)
    monkeypatch.setattr(limits, "MAX_NAMED", 2)
    plots = figures(sweep[0], sweep[1])
    assert not [name for name in plots if name.endswith("-2")]
    captions = {name: plot.caption for name, plot in plots.items()}
    left_out = "Not drawn, for want of room: "
    assert left_out + "; ".join(labels[4:]) + "." in captions["speedup_by_sampling.temperature"]
    assert "Not drawn: temperature=1." in captions["block_efficiency_by_speed"]
    assert re.search(left_out + r"[^;]+; [^;]+; and 5 more\.", captions["step_seconds"])
    assert "| temperature=1" in captions["step_seconds"].partition(left_out)[2]
    assert "| temperature=0" in captions["reached_depth"].partition(left_out)[2]


def test_an_arm_that_nothing_can_be_joined_with_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path, gammas=(1, 2), temperatures=(0.0,), proposers=("ngram",))
    write_run(tmp_path / "one", make_config("draft_model", 2), easy_traces(6, 9, 2))
    _, results, plots = draw(tmp_path)
    plot = plots["block_efficiency_by_tree.gamma"]
    assert len(legend(plot)) == 1
    (alone,) = [e.arm.label for e in drafting(results) if e.arm.options["proposer"] != "ngram"]
    assert plot.caption.endswith(f"Without two values to join: {alone}.")


def test_what_is_not_compared_is_no_axis_unless_forced(tmp_path: Path) -> None:
    for limit in (4, 5):
        config = make_config("ngram", 2)
        config["prompts"]["limit"] = limit
        write_run(tmp_path / f"{limit}", config, easy_traces(limit, 0, 2))
    name = "block_efficiency_by_prompts.limit"
    assert name not in draw(tmp_path)[2]
    assert name in draw(tmp_path, force=True)[2]


def test_machines_are_not_joined(tmp_path: Path) -> None:
    for gamma in (1, 2):
        provenance = {"num_threads": gamma}
        config = make_config("ngram", gamma)
        write_run(tmp_path / f"{gamma}", config, easy_traces(4, 0, gamma), provenance)
    assert "block_efficiency_by_tree.gamma" not in draw(tmp_path)[2]


def test_lossy_arms_are_held_against_their_distance(tmp_path: Path) -> None:
    write_lossy(write_sweep(tmp_path, gammas=(1,)) / "lossy")
    _, results, plots = draw(tmp_path)
    assert "block_efficiency_by_speed" in plots, "nothing is lossy at temperature 0"
    plot = plots["quality_by_speed-2"]
    arms = next(arms for setting, arms in results if setting.options["sampling.temperature"] == 1.0)
    expected = [(each.summary["speedup"]["value"], 0.25 * (not each.arm.lossless)) for each in arms]
    assert np.allclose(marks(plot), sorted(expected))
    fastest = max(arms, key=lambda each: each.summary["speedup"]["value"])
    assert not fastest.arm.lossless
    front = re.search(r"none is both faster and closer: ([^.]*typical[^.]*)\.", plot.caption)
    assert front is not None
    assert DEFINITIONS["total_variation"] in plot.caption


def test_arms_that_are_dominated_are_not_on_the_front() -> None:
    arm = ReportedArm("any", {}, {}, Tally.from_rows([]))

    def spot(x: float, y: float) -> Spot:
        return Spot(arm, {"value": x}, {"value": y})

    spots = [spot(1.0, 0.0), spot(2.0, 0.0), spot(1.5, 0.1), spot(3.0, 0.2), spot(3.0, 0.3)]
    front = [(each.x["value"], each.y["value"]) for each in undominated(spots)]
    assert front == [(2.0, 0.0), (3.0, 0.2)]


def test_many_arms_are_marked_by_their_plug_ins(tmp_path: Path) -> None:
    plots = draw(write_sweep(tmp_path, gammas=(1, 2, 3, 4, 5, 6), temperatures=(0.0,)))[2]
    assert sorted(legend(plots["block_efficiency_by_speed"])) == [
        "draft_model, chain, rejection",
        "ngram, rejection",
        "none",
    ]
    assert len(marks(plots["block_efficiency_by_speed"])) == 13


def test_a_page_gets_its_own_colours_ids_and_no_rules(sweep: Drawn) -> None:
    names = ("speedup_by_tree.gamma", "step_seconds")
    texts = [svg(sweep[2][name].figure) for name in names]
    ids = [re.findall(r'\bid="([^"]*)"', text) for text in texts]
    for text, some in zip(texts, ids, strict=True):
        root = ET.fromstring(text)
        assert root.get("viewBox")
        assert root.get("width") is root.get("height") is None
        assert "currentColor" in text
        assert INK not in text
        assert "<style" not in text
        assert "<metadata" not in text
        assert some, "markers and clips are referred to"
        used = re.findall(r'(?:href="#|url\(#)([^")]*)', text)
        assert set(used) == set(some)
        assert len(some) == len(set(some))
    assert not set(ids[0]) & set(ids[1])


def test_labels_are_text_whatever_they_hold(tmp_path: Path) -> None:
    for gamma in (1, 2):
        for name in ("<b>$x_1$</b>", "]]>&"):
            config = make_config("draft_model", gamma)
            config["proposer"]["model"]["path"] = name
            write_run(tmp_path / f"{gamma}{len(name)}", config, easy_traces(4, 0, gamma))
    text = svg(draw(tmp_path)[2]["block_efficiency_by_tree.gamma"].figure)
    drawn = " ".join("".join(each.itertext()) for each in ET.fromstring(text).iter())
    assert "path=<b>$x_1$</b>" in drawn
    assert "path=]]>&" in drawn


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", gammas=(1, 2), temperatures=(0.0,), proposers=("ngram",))
    before = dict(matplotlib.rcParams)
    for name in ("first", "second"):
        plots = draw(tmp_path / "runs")[2]
        some = {n: p for n, p in plots.items() if n in ("reached_depth", "step_seconds")}
        shown = [svg(plot.figure) for plot in some.values()]
        written = save(some, tmp_path / name)
        assert [svg(plot.figure) for plot in some.values()] == shown, "saving left its traces"
    assert [path.relative_to(tmp_path / "second" / "plots").name for path in written] == [
        *("reached_depth.svg", "reached_depth.png", "step_seconds.svg", "step_seconds.png")
    ]
    for path in written:
        assert path.read_bytes() == (tmp_path / "first" / "plots" / path.name).read_bytes()
    assert dict(matplotlib.rcParams) == before, "others draw, too"


def test_files_have_a_white_ground_and_their_title(tmp_path: Path, sweep: Drawn) -> None:
    plot = sweep[2]["reached_depth"]
    vector, pixels = save({"reached_depth": plot}, tmp_path)
    image = imread(pixels)
    assert image[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert image.shape[1] == round(150 * plot.figure.get_figwidth())
    top = round(150 * 0.2)
    assert image[:top].min() < 0.5, "no title"
    ET.fromstring(vector.read_text())


def test_captions_do_not_repeat_their_titles(sweep: Drawn) -> None:
    for name, plot in sweep[2].items():
        assert not plot.caption.startswith(plot.title.split(",")[0]), name


def test_labels_of_y_are_whole_whatever_the_ticks(tmp_path: Path) -> None:
    for gamma, more in ((1, 0), (2, 1)):
        traces = [
            make_trace(f"prompt-{number}", *[make_step(0, gamma)] * 60, make_step(more, gamma))
            for number in range(4)
        ]
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), traces)
    plot = draw(tmp_path)[2]["block_efficiency_by_tree.gamma"]
    axes = axes_of(plot)
    renderer = FigureCanvasAgg(plot.figure).get_renderer()
    plot.figure.draw(renderer)
    assert max(len(text.get_text()) for text in axes.get_yticklabels()) >= 5, "1.005"
    assert axes.yaxis.label.get_window_extent(renderer).x0 > 0
    assert axes.get_position().x1 == pytest.approx((WIDTH - RIGHT) / WIDTH)


def test_trainings_are_drawn_against_tokens_and_nothing_else(tmp_path: Path) -> None:
    plots = draw(write_trained(tmp_path))[2]
    drawn = [name for name in plots if "_by_training" in name]
    assert sorted(drawn) == [
        "block_efficiency_by_training.tokens",
        "speedup_by_training.tokens",
    ]
    plot = plots[drawn[0]]
    assert plot.title == "Block efficiency against training tokens"
    assert axes_of(plot).get_xlabel() == "training tokens"
    assert [text.get_text() for text in axes_of(plot).get_xticklabels()] == ["194 k", "291 k"]
    assert [x for x, _ in marks(plot)] == pytest.approx([194_131, 291_200])


def test_what_was_replayed_has_no_plots_of_speed(tmp_path: Path) -> None:
    assert list(draw(write_replayed(tmp_path))[2]) == [
        "block_efficiency_by_tree.gamma",
        "block_efficiency_by_draft_tokens",
        *("acceptance_at_depth", "reached_depth"),
    ]


def test_paths_are_said_only_where_nothing_else_tells_lines_apart(tmp_path: Path) -> None:
    for proposer in ("medusa", "chained"):
        for batch in (1, 2):
            config = make_config(proposer, batch=batch)
            config["proposer"]["path"] = f"heads/{proposer}"
            write_run(tmp_path / f"{proposer}-{batch}", config, easy_traces(4, batch, 2))
    assert legend(draw(tmp_path)[2]["block_efficiency_by_batch"]) == ["chained", "medusa"]
