"""From measured cells to numbers, words, figures and the page: worked by hand, nothing trained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.config import TrainConfig
from training.interactions import Interactions
from training.report.build import build_report
from training.report.cells import Cell, CellStore, Measurement, Ranking
from training.report.figures import spread
from training.report.memory import PeakMemory
from training.report.plan import Plan, Task
from training.report.results import PairedTest, Point, Report, Results

# No element of HTML, which is taken out when a file is read: this is what the page has to escape.
HOSTILE = '<x-script>alert("1")</x-script> & $x_1$'


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Three items, and four test queries of which the third has nothing to find."""
    folder = tmp_path_factory.mktemp("data")
    catalog = folder / "catalog.csv"
    title = HOSTILE.replace('"', '""')
    catalog.write_text(f'item_id,title\na,Kettle\nb,Mug\nc,"{title}"\n', "utf-8")
    train, test = folder / "train.csv", folder / "test.csv"
    train.write_text("query,item_id\n" + "".join(f"t{i},{'abc'[i % 3]}\n" for i in range(40)))
    test.write_text(
        f'query,item_id,grade\nq1,a,1\n"{HOSTILE.replace(chr(34), chr(34) * 2)}",b,2\n'
        "q3,a,0\nq4,c,1\nq4,a,0\n",
        "utf-8",
    )
    items = Catalog.read(catalog)
    return Task(
        TrainConfig(), items, Interactions.read(train, items), Interactions.read(test, items)
    )


PLAN = Plan(methods=("linear", "full"), shots=(0, 8, 40), seeds=1, baselines=("zero-shot", "bm25"))
# Values of q1, the hostile one and q4; q3 does not count.
DENSE = {
    Cell("zero-shot"): (0.5, 0.5, 0.5),
    Cell("linear", 8, 0): (0.6, 0.5, 0.5),
    Cell("linear", 8, 1): (0.8, 0.5, 0.2),
    Cell("linear", 40, 0): (0.9, 0.9, 0.6),
    Cell("full", 8, 0): (0.2, 0.3, 0.25),
    Cell("full", 8, 1): (0.2, 0.3, 0.25),
    Cell("full", 40, 0): (1.0, 1.0, 0.1),
}
FIRST = {"zero-shot": ["b", "a", "c"], "linear": ["a", "c", "b"], "full": ["c", "b", "a"]}


def measurement(task: Task, cell: Cell, values: tuple[float, ...], view: str) -> Measurement:
    first, second, fourth = values
    first_items = FIRST.get(cell.system, ["a", "b", "c"])
    ranking = Ranking(values=[first, second, None, fourth], first=[first_items] * 4)
    return Measurement(
        views={view: ranking},
        trained_parameters=9 if cell.shots else 0,
        seconds=2.0 + cell.seed if cell.shots else None,
        peak_memory=(cell.seed + 1) << 30 if cell.shots else None,
        identity=task.identity(cell),
        packages={"keras": f"3.{cell.seed}"},
        training={"choice": {"method": "lora"}} if cell.system == "linear" else {},
        when="2025-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def measured(task: Task) -> dict[Cell, Measurement]:
    cells = {cell: measurement(task, cell, values, "dense") for cell, values in DENSE.items()}
    return cells | {Cell("bm25"): measurement(task, Cell("bm25"), (0.6, 0.6, 0.6), "lexical")}


@pytest.fixture(scope="module")
def folder(
    task: Task, measured: dict[Cell, Measurement], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A report of cells that lay finished on disk."""
    output = tmp_path_factory.mktemp("reports") / "first"
    for cell, one in measured.items():
        CellStore(output / "cells").write(cell, one)
    build_report(
        task,
        PLAN,
        output,
        lexical=lambda template, catalog: pytest.fail("nothing is to be measured"),
        command="towers report --output 'first one'",
        notes=["A note."],
    )
    return output


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def point(report: Report, system: str, shots: int, view: str = "dense") -> Point:
    found = report.point(view, system, shots)
    assert found is not None
    return found


def compared(report: Report, system: str, shots: int, baseline: str) -> PairedTest:
    key = system, shots, baseline
    return next(t for t in report.tests if (t.system, t.shots, t.baseline) == key)


# Numbers


def test_points_are_means_over_draws(report: Report) -> None:
    linear = point(report, "linear", 8)
    assert linear.values == pytest.approx([1.6 / 3, 1.5 / 3])
    assert linear.mean == pytest.approx(3.1 / 6)
    # Two draws: t of one degree of freedom is 12.706, the standard error half their distance.
    reach = 12.7062 * (0.1 / 3) / 2
    assert linear.interval_95 == pytest.approx((3.1 / 6 - reach, 3.1 / 6 + reach), abs=1e-5)
    assert linear.seeds == [0, 1]
    assert point(report, "linear", 40).interval_95 is None
    assert point(report, "bm25", 0, "lexical").mean == pytest.approx(0.6)
    low, high = linear.interval_95_over_queries
    assert 0.349 < low < linear.mean < high < 0.701


def test_tests_are_over_queries_that_count(report: Report) -> None:
    test = compared(report, "linear", 8, "zero-shot")
    assert test.difference == pytest.approx((0.2 + 0 - 0.15) / 3)
    assert (test.wins, test.ties, test.losses) == (1, 1, 1)
    # Every query lost: differences -.3, -.2, -.25, so t = -.25 / (.05 / sqrt 3), two degrees.
    test = compared(report, "full", 8, "zero-shot")
    t = 0.25 / (0.05 / np.sqrt(3))
    assert test.p_t == pytest.approx(1 - t / np.sqrt(t * t + 2))  # the t distribution of 2 degrees
    assert test.p_randomisation == pytest.approx(2 / 8)  # 2 of the 8 ways to choose the signs
    assert (test.wins, test.ties, test.losses) == (0, 0, 3)
    assert len(report.tests) == 2 * 2 * 2  # methods, shots, baselines
    least = min(report.tests, key=lambda test: test.p_t)
    assert least.p_holm == pytest.approx(8 * least.p_t)


def test_best_method_of_each_number_of_shots(report: Report) -> None:
    assert [(best.point.shots, best.point.system) for best in report.best] == [
        (8, "linear"),
        (40, "linear"),
    ]
    assert all(best.test.baseline == "zero-shot" for best in report.best)


def test_costs(report: Report) -> None:
    cost = next(cost for cost in report.costs if (cost.system, cost.shots) == ("linear", 8))
    assert (cost.trained_parameters, cost.seconds, cost.peak_memory) == (9, 2.5, 2 << 30)
    assert cost.methods == {"lora": 2}
    assert report.packages["keras"] == ["3.0", "3.1"]


def test_examples_show_what_changed_most(report: Report) -> None:
    linear, full = report.examples
    assert (linear.system, linear.shots) == ("linear", 40)
    assert [example.query for example in linear.gained] == ["q1", HOSTILE, "q4"]
    assert linear.lost == []
    assert [example.query for example in full.lost] == ["q4"]
    lost = full.lost[0]
    assert (lost.before, lost.after, lost.seed) == (0.5, 0.1, 0)
    assert [(item.item_id, item.grade) for item in lost.items_before] == [
        ("b", None),
        ("a", 0),
        ("c", 1),
    ]
    assert [item.title for item in lost.items_after] == [HOSTILE, "Mug", "Kettle"]


def test_the_example_is_of_the_draw_nearest_to_the_mean(
    task: Task, measured: dict[Cell, Measurement]
) -> None:
    cells = {cell: one for cell, one in measured.items() if cell.shots != 40}
    third = measurement(task, Cell("linear", 8, 2), (0.71, 0.5, 0.36), "dense")
    (linear, _) = Results(task, PLAN, cells | {Cell("linear", 8, 2): third}).examples
    assert {example.query: example.seed for example in linear.gained} == {"q1": 2}
    assert {example.query: example.seed for example in linear.lost} == {"q4": 2}


# Words


def test_summary_says_what_is_best_and_what_did_harm(report: Report) -> None:
    text = "\n".join(report.summary)
    assert "Best with 8 shots: linear, 0.517 (95% 0.305 to 0.728 over 2 draws); +0.017" in text
    assert "Best with 40 shots: linear, 0.800 (one draw); +0.300 against zero-shot" in text
    # Of 8 tests, p = .013 is not significant.
    assert (
        "Nothing is significantly worse than without training; the largest loss is −0.250," in text
    )
    assert "full with 8 shots against zero-shot" in text
    assert "worst single draw of all: full with 8 shots, −0.250 against zero-shot." in text
    assert (
        "BM25, without towers, reaches 0.600; the best towers alone beat it from 40 shots" in text
    )


def test_summary_names_significant_harm(task: Task, measured: dict[Cell, Measurement]) -> None:
    worse = {
        Cell("full", shots, seed): measurement(
            task, Cell("full", shots, seed), (0.3, 0.3 + 1e-5, 0.3 - 1e-5), "dense"
        )
        for shots, seed in ((8, 0), (8, 1))
    }
    tests = Results(task, PLAN, measured | worse).tests
    from training.report.summary import summarise

    text = "\n".join(summarise([], tests, []))
    assert "Significantly worse than without training: full with 8 shots (−0.200 against" in text
    assert "full with 40 shots" not in text


def test_notes_warn_of_what_a_reader_must_know(
    task: Task, measured: dict[Cell, Measurement], report: Report, tmp_path: Path
) -> None:
    assert report.notes == ["A note.", "1 test queries have nothing to find and are left out."]
    assert report.cells == (8, 8)
    leaky = Task(task.config, task.catalog, task.test, task.test)
    store = CellStore(tmp_path / "cells")
    some = [Cell("zero-shot"), Cell("linear", 3, 0)]
    for cell in some:
        one = measurement(leaky, cell, (0.5, 0.5, 0.5), "dense")
        store.write(cell, one.model_copy(update={"seconds": None}))
    plan = Plan(methods=("linear",), shots=(3,), seeds=1, baselines=("zero-shot",))
    partial = build_report(leaky, plan, tmp_path, lexical=pytest.fail, measure=False)
    assert partial.cells == (2, 3)
    assert partial.notes[0] == "Not finished: 1 of 3 measurements are missing."
    assert partial.notes[1].startswith("Careful: 4 of 4 test queries are also among the queries")
    assert partial.notes[3].startswith("1 trainings were interrupted")


# The page


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "col", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


def test_page_is_whole_html_that_needs_nothing_else(page: str) -> None:
    seen = Page(page)
    assert seen.open == []
    assert {tag for tag, _ in seen.tags} & {"script", "link", "img", "iframe"} == set()
    links = [
        value
        for _, attributes in seen.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href") and not str(value).startswith("#")
    ]
    assert links == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page


def test_page_shows_texts_as_they_are(page: str) -> None:
    assert "<x-script" not in page
    assert "<script" not in page
    assert Page(page).text.count(HOSTILE) >= 2  # as query and as title


def test_page_shows_every_number_of_the_json(page: str, report: Report) -> None:
    text = re.sub(r"\s+", " ", Page(page).text)
    for sentence in (*report.summary, *report.notes, report.command):
        assert sentence in text
    for one in report.points:
        assert f"{one.mean:.3f}" in text
    for test in report.tests:
        assert f"{test.difference:+.3f}".replace("-", "−") in text
        assert f"{test.wins}, {test.ties}, {test.losses}" in text
    assert "0.517 ± 0.212" in text
    assert "2 draws, worst 0.500" in text
    assert "2.0 GB" in text
    assert "lora 2×" in text
    for file in report.data.values():
        assert file["sha256"][:16] in text


def test_figure_shows_every_system_in_colours_of_the_page(page: str) -> None:
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(found) == 1  # there is no hybrid ranking in these cells
    ElementTree.fromstring(found[0])  # well-formed
    for text in ("linear", "full", "zero-shot", "BM25", "8", "40", "nDCG@10"):
        assert f">{text}</text>" in found[0]
    assert not re.search(r"#[0-9a-f]{6}\b", found[0])
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", found[0]))
    assert {"--ink", "--grid", "--series-1", "--series-2"} <= used
    for variable in used:
        assert page.count(f"{variable}: #") == 2, variable  # light and dark
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_curves_are_where_the_numbers_are(page: str, report: Report) -> None:
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", page, re.DOTALL)[0])

    def heights(variable: str, width: str) -> list[list[float]]:
        lines = []
        for path in svg.iter("{http://www.w3.org/2000/svg}path"):
            style = path.get("style", "")
            if f"stroke: var({variable})" in style and f"stroke-width: {width}" in style:
                lines.append([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d"))])
        return lines

    levels = sorted(line[0] for line in heights("--faint", "1.2"))  # BM25, then zero-shot
    unit = (levels[1] - levels[0]) / 0.1
    for variable, system in (("--series-1", "linear"), ("--series-2", "full")):
        (drawn,) = [line for line in heights(variable, "2") if len(line) == 3]
        values = [0.5, point(report, system, 8).mean, point(report, system, 40).mean]
        expected = [levels[1] - (value - 0.5) * unit for value in values]
        assert drawn == pytest.approx(expected, abs=0.01)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_labels_are_moved_apart_and_no_further(wanted: list[float]) -> None:
    places = spread(np.array(wanted), 0.05)
    assert (np.diff(places) > 0.05 - 1e-9).all()
    assert places.mean() == pytest.approx(np.mean(wanted))  # least squares: nobody is favoured
    if (np.diff(wanted) >= 0.05).all():
        assert places == pytest.approx(wanted)


# Cells on disk


def test_a_cell_is_found_by_what_it_depends_on_alone(task: Task, folder: Path) -> None:
    store = CellStore(folder / "cells")
    cell = Cell("linear", 8, 1)
    assert store.read(cell, task.identity(cell)).views["dense"].values == [0.8, 0.5, None, 0.2]
    other_shape = task.config.model_copy(
        update={"fit": task.config.fit.model_copy(update={"epochs": 9})}
    )
    others = [
        Task(other_shape, task.catalog, task.train, task.test),
        Task(task.config, task.catalog, task.train, task.test, measure="RR@10"),
        Task(task.config, task.catalog, task.train, task.test, gains={0: 0, 1: 1, 2: 5}),
        Task(task.config, task.catalog, task.train, task.test, dtype="bfloat16"),
        Task(task.config, task.catalog, task.test, task.test),
    ]
    for other in others:
        assert store.read(cell, other.identity(cell)) is None
    # What is not trained does not depend on how training is done.
    assert store.read(Cell("bm25"), others[0].identity(Cell("bm25"))) is not None
    # Nor does anything depend on the name of a file.
    catalog = Catalog(task.catalog.table, "elsewhere.csv", task.catalog.sha256)
    moved = Task(task.config, catalog, task.train, task.test)
    assert store.read(cell, moved.identity(cell)) is not None


def test_a_damaged_cell_is_named(task: Task, tmp_path: Path) -> None:
    store, cell = CellStore(tmp_path), Cell("bm25")
    path = store.path(cell, task.identity(cell))
    path.write_text('{"views": ', "utf-8")
    with pytest.raises(InputError, match=re.escape(f"{path} is damaged: remove it")):
        store.read(cell, task.identity(cell))


def test_json_is_json(folder: Path) -> None:
    text = (folder / "report.json").read_text("utf-8")
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity


def test_peak_memory_is_that_of_the_block() -> None:
    with PeakMemory() as large:
        np.ones(200 << 20, np.uint8)
    with PeakMemory() as small:
        pass
    assert large.bytes - small.bytes > 150 << 20


# Bad plans


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ()}, "methods: name one or more"),
        ({"methods": ("full", "full")}, "methods full, full: name each once"),
        ({"methods": ("magic",)}, "unknown method 'magic'; there are zero-shot, "),
        ({"shots": (0,)}, "shots 0: expected numbers of pairs, one of them above 0"),
        ({"shots": (-8, 8)}, "shots -8, 8: expected numbers of pairs"),
        ({"shots": (8, 8)}, "shots 8, 8: name each once"),
        ({"seeds": 0}, "seeds is 0, expected 1 or more"),
        ({"baselines": ("bm26",)}, "unknown baseline 'bm26'; there are zero-shot, bm25, hybrid"),
    ],
)
def test_bad_plans_are_refused(arguments: dict[str, tuple], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Plan(**({"methods": ("full",)} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "speed@3"}, "unknown measure 'speed@3'"),
        ({"measure": "Coverage@10"}, "Coverage@10 is one number for all queries"),
        ({"gains": {0: 0.0, 1: 1.0}}, "grade 2 is among the judgements and has no gain"),
        ({"config": TrainConfig(min_grade=3)}, "no positive pair"),
    ],
)
def test_bad_tasks_are_refused(task: Task, arguments: dict[str, object], message: str) -> None:
    parts = {name: getattr(task, name) for name in ("config", "catalog", "train", "test")}
    with pytest.raises(InputError, match=re.escape(message)):
        Task(**(parts | arguments))


def test_twice_as_many_draws_where_there_are_few_shots() -> None:
    plan = Plan(methods=("full",), shots=(0, 8, 32, 33), seeds=3, baselines=("bm25",))
    draws = {shots: len([c for c in plan.cells() if c.shots == shots]) for shots in (8, 32, 33)}
    assert draws == {8: 6, 32: 6, 33: 3}
    assert plan.cells()[:3] == [Cell("zero-shot"), Cell("bm25"), Cell("full", 8, 0)]
