"""The page holds every number with its interval, needs no network, and runs no foreign text."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specdec.metrics import DEFINITIONS
from specdec.report.page import page
from specdec.report.page import token_texts as packing
from specdec.report.page.glossary import MORE
from specdec.report.page.render import breakable, unbroken
from specdec.report.plots import figures
from tests.support.fabricated import easy_traces, make_config, write_run, write_status
from tests.support.swept import (
    EVIL,
    gathered,
    judged_traces,
    make_text,
    write_lossy,
    write_replayed,
    write_sweep,
    write_trained,
)

VOID = {"meta", "link", "br", "wbr", "img", "input"}


@dataclass
class Node:
    """An element, with what is in it."""

    tag: str
    attrs: dict[str, str | None] = field(default_factory=dict[str, str | None])
    inside: "list[Node | str]" = field(default_factory=list["Node | str"])

    @property
    def text(self) -> str:
        return "".join(x if isinstance(x, str) else x.text for x in self.inside).strip()

    def walk(self) -> "Iterator[Node]":
        yield self
        for each in self.inside:
            if isinstance(each, Node):
                yield from each.walk()

    def all(self, tag: str, **attrs: str) -> "list[Node]":
        found = [node for node in self.walk() if node.tag == tag]
        return [n for n in found if all(n.attrs.get(k) == v for k, v in attrs.items())]


class Tree(HTMLParser):
    """Build nodes, and complain of tags that are closed in another order than opened."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("root")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].inside.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def parse(text: str) -> Node:
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == [tree.root], "an element is never closed"
    return tree.root


def rendered(
    folder: Path,
    texts: Sequence[Mapping[str, Any]] = (),
    force: bool = False,
    drawn: Sequence[str] | None = (),
) -> str:
    """Render a folder, with plots of these names only, since drawing takes time; None are all."""
    collection, results = gathered(folder, force)
    plots = {} if drawn == () else figures(collection, results)
    some = {name: plot for name, plot in plots.items() if drawn is None or name in drawn}
    return page(collection, results, some, texts)


def cells(row: Node) -> list[str]:
    return [" ".join(each.text.split()) for each in row.inside if isinstance(each, Node)]


def captioned(root: Node, caption: str) -> Node:
    tables = [node for node in root.all("table") if node.all("caption")]
    (found,) = [node for node in tables if node.all("caption")[0].text == caption]
    return found


def table(root: Node, caption: str) -> list[list[str]]:
    """Return a table by its caption, the head first."""
    return [cells(row) for row in captioned(root, caption).all("tr")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    texts = [make_text("ngram"), make_text("ngram", "second"), make_text("other")]
    return rendered(folder, texts, drawn=None)


@pytest.fixture(scope="module")
def root(text: str) -> Node:
    return parse(text)


def test_nothing_is_fetched_from_anywhere(text: str, root: Node) -> None:
    for node in root.walk():
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            where = node.attrs.get(name)
            assert where is None or where.startswith(("#", "data:,")), (node.tag, where)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    (policy,) = root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    (script,) = [node for node in root.all("script") if "type" not in node.attrs]
    digest = base64.b64encode(hashlib.sha256("".join(map(str, script.inside)).encode()).digest())
    assert "default-src 'none'" in (policy.attrs["content"] or "")
    assert f"'sha256-{digest.decode()}'" in (policy.attrs["content"] or "")


def test_ids_are_unique_and_lead_somewhere(root: Node) -> None:
    ids = [node.attrs["id"] for node in root.walk() if "id" in node.attrs]
    assert len(ids) == len(set(ids))
    for node in root.walk():
        for name in ("href", "xlink:href", "aria-describedby", "aria-labelledby", "for"):
            where = node.attrs.get(name)
            if where is not None and not where.startswith("data:"):
                assert where.removeprefix("#") in ids, (node.tag, name, where)


def test_headings_are_in_order(root: Node) -> None:
    assert root.all("html")[0].attrs["lang"] == "en"
    levels = [int(node.tag[1]) for node in root.walk() if re.fullmatch("h[1-6]", node.tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_head_says_what_this_is(root: Node, folder: Path) -> None:
    assert root.all("h1")[0].text == folder.name
    lead = " ".join(root.all("p", **{"class": "lead"})[0].text.split())
    for said in ("14 runs", "14 arms", "6 prompts", "2 settings", "Verifier: verifier"):
        assert said in lead


def test_a_verifier_that_was_tuned_goes_by_whence_it_came(tmp_path: Path) -> None:
    root = parse(rendered(write_trained(tmp_path, joint=True)))
    lead = " ".join(root.all("p", **{"class": "lead"})[0].text.split())
    assert lead.endswith("Verifier: original (tuned with its heads)")
    assert {node.text for node in root.all("h3")} >= {"verifier 194131", "verifier 291200"}


def test_replayed_runs_are_called_expected_values(tmp_path: Path, root: Node) -> None:
    replayed = parse(rendered(write_replayed(tmp_path)))
    said = " ".join(replayed.all("section", **{"class": "notes"})[0].text.split())
    assert "Expected values, computed from the recording recordings/mine without decoding" in said
    assert "tokens/s" not in table(replayed, "All arms")[0]
    assert "xpected values, computed" not in root.text


def test_few_prompts_are_noted_below_the_table(tmp_path: Path, root: Node) -> None:
    few = "n = 3 prompts: too few to resolve differences"
    notes = parse(rendered(write_trained(tmp_path))).all("p", **{"class": "small"})
    assert any(" ".join(node.text.split()).startswith(few) for node in notes)
    assert "too few" not in root.text


def test_lines_end_where_they_may() -> None:
    assert unbroken("n = 3 prompts, 95 % of 194 k") == (
        "n\u00a0=\u00a03 prompts, 95\u00a0% of 194\u00a0k"
    )
    assert unbroken("an = 3, 4 kinds") == "an = 3, 4 kinds"
    assert breakable("a_b-<i>") == "a_<wbr>b-<wbr>&lt;i&gt;"


def test_the_overview_holds_the_numbers(root: Node, folder: Path) -> None:
    head, *rows = table(root, "Arms, temperature=1")
    assert head == [
        *("arm", "rule", "tau", "difference to best (Holm's level)", "acceptance rate", "overlap"),
        *("tokens/s", "speedup", "cost ratio", "peak memory (GiB)", "prompts (n)", "seeds"),
    ]
    _, results = gathered(folder)
    arms = next(arms for setting, arms in results if setting.label == "temperature=1")
    by_tau = sorted(arms, key=lambda each: -each.summary["block_efficiency"]["value"])
    assert [row[0] for row in rows] == [each.arm.label for each in by_tau]
    for row, each in zip(rows, by_tau, strict=True):
        for place, key, digits in ((2, "block_efficiency", 2), (6, "tokens_per_second", 1)):
            number = each.summary[key]
            shown = f"{number['value']:.{digits}f}{number['low']:.{digits}f}"
            assert shown in row[place].replace("= ", "")
            assert row[place].endswith(f"\u2013{number['high']:.{digits}f}")
        assert row[10:] == ["6", "1"]
        difference = each.summary.get("difference")
        assert row[3].startswith("-" if difference is None else f"{difference['value']:+.2f}")
    assert rows[0][3] == "-"
    assert rows[-1][0] == "none"
    assert rows[-1][1] == "nonelossless"


def test_the_best_is_bold_and_ties_are_marked(folder: Path) -> None:
    collection, [(setting, arms), *_] = gathered(folder)
    in_order = sorted(arms, key=lambda each: -each.summary["block_efficiency"]["value"])
    best, fastest, tied, slow = (each.arm.label for each in in_order[:4])
    marked_arms = [
        replace(each, summary={**each.summary, **marks})
        for each in arms
        for label in [each.arm.label]
        for marks in [
            {
                "best": label == best,
                "tie": label == tied,
                "fastest": label == fastest,
                "tie_in_speed": label == slow,
            }
        ]
    ]
    grid = captioned(parse(page(collection, [(setting, marked_arms)], {}, [])), "All arms")
    rows = {row.all("th")[0].text: row.all("td") for row in grid.all("tbody")[0].all("tr")}
    for column, most, like in ((1, best, tied), (6, fastest, slow)):
        marked = [name for name, cells in rows.items() if cells[column].all("abbr")]
        bold = [n for n, cells in rows.items() if cells[column].attrs.get("class") == "best"]
        assert (bold, marked) == ([most], [like])
    assert rows[tied][1].text.startswith("= ")


@pytest.mark.parametrize("num_prompts", [5, 6])
def test_numbers_of_few_prompts_stand_alone(tmp_path: Path, num_prompts: int) -> None:
    """No interval, no bold, no mark: five prompts resolve nothing, and six do."""
    for gamma in (1, 2, 4):
        traces = easy_traces(num_prompts, gamma, gamma)
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), traces)
    page_of_it = parse(rendered(tmp_path))
    cells = captioned(page_of_it, "All arms").all("td")
    marked = [cell for cell in cells if cell.all("abbr") or cell.attrs.get("class") == "best"]
    intervals = [small for cell in cells for small in cell.all("small", **{"class": "interval"})]
    notes = [small.text for small in intervals if small.text not in ("lossless",)]
    assert (not marked, not notes) == ((True, True) if num_prompts < 6 else (False, False))
    by_category = captioned(page_of_it, "tau, all").all("td")
    assert not [cell for cell in by_category if cell.attrs.get("class") == "best"]
    assert not [cell for cell in by_category if cell.all("small")]


def test_titles_of_columns_say_what_they_mean(root: Node) -> None:
    buttons = [button for head in root.all("thead") for button in head.all("button")]
    assert buttons
    meanings = {**DEFINITIONS, **MORE}
    for button in buttons:
        name = (button.attrs["aria-describedby"] or "").removeprefix("means-")
        assert button.attrs["title"] == meanings[name]
        assert root.all("dd", id=f"means-{name}")[0].text == meanings[name]
    first = root.all("thead")[0].all("th")
    assert [th.text for th in first if th.attrs["aria-sort"] == "descending"] == ["tau"]


def test_plots_have_captions(root: Node, folder: Path) -> None:
    collection, results = gathered(folder)
    plots = figures(collection, results)
    captions = [" ".join(each.text.split()) for each in root.all("figcaption")]
    assert sorted(captions) == sorted(f"{p.title}. {p.caption}" for p in plots.values())
    assert len(root.all("svg")) == len(plots)


def test_categories_have_tables_of_their_own(root: Node, folder: Path, tmp_path: Path) -> None:
    _, results = gathered(folder)
    head, *rows = table(root, "tau, temperature=0")
    assert head == ["arm", *(f"{name} (n = 2)" for name in ("code", "math", "text"))]
    for row, each in zip(rows, results[0][1], strict=True):
        number = each.by_category["math"]["block_efficiency"]
        assert (row[0], row[2][:4]) == (each.arm.label, f"{number.value:.2f}")
    assert len(table(root, "speedup, temperature=0")) == len(rows), "all but the baseline"
    traces = [replace(trace, category="one") for trace in easy_traces(4, 0, 2)]
    write_run(tmp_path / "run", make_config("ngram", 2), traces)
    assert "By category" not in rendered(tmp_path)


def test_a_number_of_fewer_prompts_says_so(tmp_path: Path) -> None:
    traces = [
        t if t.prompt_id != "prompt-0" else replace(t, category="rare")
        for t in easy_traces(6, 0, 2)
    ]
    write_run(tmp_path / "2", make_config("ngram", 2), traces)
    none = [
        replace(t, category="rare" if t.prompt_id == "prompt-0" else t.category)
        for t in easy_traces(6, 0, 0)
    ]
    write_run(tmp_path / "none", make_config("none"), none)
    collection, results = gathered(tmp_path)
    arm = results[0][1][0]
    arm.summary["overlap"]["n"] = 5
    root = parse(page(collection, results, {}, []))
    assert [row[5] for row in table(root, "All arms") if "(n = 5)" in row[5]]
    assert "(n = " not in " ".join(table(root, "All arms")[2])
    assert table(root, "tau, all")[0] == [
        *("arm", "code (n = 1)", "math (n = 2)", "rare (n = 1)", "text (n = 2)")
    ]


def test_lossy_arms_say_by_how_much(tmp_path: Path) -> None:
    write_lossy(write_sweep(tmp_path, gammas=(1,), temperatures=(1.0,)) / "lossy")
    rows = table(parse(rendered(tmp_path)), "All arms")
    (row,) = [row for row in rows if "typical" in row[1]]
    assert row[1] == "typicallossyTV 0.250 (0.250\u20130.250)KL 0.500 (0.500\u20130.500)"


def test_judges_are_shown(tmp_path: Path, root: Node) -> None:
    write_run(tmp_path / "run", make_config("draft_model", 2), judged_traces())
    rows = table(parse(rendered(tmp_path)), "Judges, all")
    assert [row[1] for row in rows] == ["judged by", "rejectiondecides", "block"]
    assert rows[2][2].startswith("1.500")
    assert rows[2][3].startswith("+0.250")
    assert "shown to other rules" not in root.text


def test_notes_say_what_is_missing_and_what_is_kept_apart(tmp_path: Path, root: Node) -> None:
    for number in (1, 2, 3):
        provenance = {"num_threads": number}
        path = tmp_path / f"run-{number}"
        write_run(path, make_config("ngram", 2), easy_traces(4, 0, 2), provenance)
    write_status(tmp_path / "run-3", state="failed")
    said = " ".join(rendered(tmp_path).split())
    assert "1 run is not complete" in said
    assert "<code>run-3</code>: failed" in said
    assert "Not compared with each other" in said
    assert "threads: 1; 2</li>" in said
    forced = rendered(tmp_path, force=True)
    assert "Compared all the same" in forced
    assert "Not compared with each other" not in forced
    assert not [node for node in root.all("h2") if node.text == "Notes"]


def test_whatever_a_run_says_is_text(tmp_path: Path) -> None:
    for gamma in (1, 2):
        config = make_config("draft_model", gamma)
        config["verifier"]["path"] = EVIL
        for number, evil in enumerate((EVIL, "tame")):
            config["proposer"]["model"]["path"] = evil
            provenance = {"argv": ["decode", EVIL]}
            write_run(tmp_path / f"{gamma}{number}", config, easy_traces(4, 0, gamma), provenance)
    root = parse(rendered(tmp_path, [make_text(EVIL, EVIL)]))
    assert not root.all("img")
    scripts = root.all("script")
    assert [node.attrs.get("type") for node in scripts] == ["application/json", None]
    data = json.loads("".join(map(str, scripts[0].inside)))
    assert data["arms"] == [EVIL]
    assert data["prompts"] == [f"{EVIL}: {EVIL}"]
    assert data["texts"][0][1:3] == [EVIL, 0]
    assert data["texts"][0][4][1] == [EVIL, 0, 2, [" one", EVIL]]
    assert EVIL in table(root, "All arms")[1][0] + table(root, "All arms")[2][0]


def test_texts_that_are_too_many_are_left_out_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [make_text(arm, f"prompt {n}", evil="x") for arm in ("a", "b") for n in range(4)]
    assert "of 8 texts" not in rendered(folder, texts)
    size = len(json.dumps([[packing.packed_token(t) for t in texts[0]["tokens"]], "prompt 0: x"]))
    monkeypatch.setattr(packing, "MAX_TEXT_CHARACTERS", 3 * size)
    said = rendered(folder, texts)
    assert "3 of 8 texts" in said
    data = packing.embedded(texts)
    assert [(row[0], row[1]) for row in data["texts"]] == [
        (0, "prompt 0"),
        (1, "prompt 0"),
        (0, "prompt 1"),
    ]


def test_a_kind_that_nobody_knows_is_an_error(folder: Path) -> None:
    text = make_text("a")
    text["tokens"][0]["kind"] = "guessed"
    with pytest.raises(AssertionError, match="guessed"):
        rendered(folder, [text])


def test_without_texts_there_is_no_token_view(folder: Path, root: Node) -> None:
    plain = parse(rendered(folder))
    assert not plain.all("div", id="tokens")
    assert not plain.all("dd", id="means-bonus")
    assert root.all("div", id="tokens")
    assert root.all("dd", id="means-bonus")


def test_provenance_counts_what_differs(tmp_path: Path) -> None:
    for gamma, torch in ((1, "2.12"), (2, "2.13"), (3, "2.13")):
        day = f"2025-01-0{gamma}T00:00:00+0000"
        provenance = {"versions": {"torch": torch}, "started": day, "argv": ["decode.py", "a=1"]}
        write_run(
            tmp_path / f"{gamma}", make_config("ngram", gamma), easy_traces(4, 0, gamma), provenance
        )
    root = parse(rendered(tmp_path))
    rows = {
        row.all("th")[0].text: row for row in root.all("tr") if row.all("th") and row.all("div")
    }
    said = {name: [div.text for div in row.all("div")] for name, row in rows.items()}
    assert said["versions.torch"] == ["2.13 (2 runs)", "2.12 (1 run)"]
    assert said["command"] == ["decode.py a=1"]
    assert said["started"] == ["2025-01-01T00:00:00+0000 to 2025-01-03T00:00:00+0000"]
    assert "2025-01-01 to 2025-01-03" in root.all("p", **{"class": "lead"})[0].text


def test_the_same_runs_give_the_same_page(folder: Path) -> None:
    first, second = (rendered(folder, drawn=["step_seconds"]) for _ in range(2))
    assert first == second


def colours() -> dict[str, tuple[str, str]]:
    style = (files("specdec.report") / "page" / "style.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    return {name: (light, dark) for name, light, dark in pairs}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


GROUNDS = ("back", "raised", "note", "recovered", "bonus", *(f"depth-{d}" for d in range(1, 6)))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        *(("front", ground, 4.5) for ground in GROUNDS),
        *((front, ground, 4.5) for front in ("muted", "link") for ground in ("back", "raised")),
        ("link", "note", 4.5),
        ("control", "back", 3.0),
    ],
)
def test_colours_can_be_read(front: str, back: str, least: float, theme: int) -> None:
    found = colours()
    assert contrast(found[front][theme], found[back][theme]) >= least
