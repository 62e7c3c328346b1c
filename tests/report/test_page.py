"""Promise: whoever opens a study's page sees what the ledger says, in any browser, without a network.

It would break without anyone noticing: a figure that is not drawn leaves white space, a name that is not
escaped breaks a page that nobody tries with such a name, and a link to a font asks the network behind the
back of whoever reads about their patients.
"""

from __future__ import annotations

import html
import json
import random
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raymrc.analysis.conclusions import AHEAD, BEHIND, EQUIVALENT, UNSURE
from raymrc.analysis.findings import Findings
from raymrc.analysis.judging import conclude
from raymrc.analysis.sentences import final_sentence, interval_text
from raymrc.analysis.summary import summarise
from raymrc.cli import main
from raymrc.cli.job import write_page
from raymrc.errors import StudyError
from raymrc.ledger.record import BOTH_FOUND, NoteCounts, Record
from raymrc.planning.fold_runs import fold_run
from raymrc.report import write, write_plots
from raymrc.report.page import build_page, data
from raymrc.report.results import gap_table
from raymrc.report.sections import build_facts, build_sections
from raymrc.scoring.counts import Counts
from raymrc.study.load import load_spec
from tests.browser import Visit, browser, needs_chromium
from tests.commands import raymrc, write_notes
from tests.model.tiny import WORDS, tiny_checkpoint
from tests.report.making import FEW_SHOT, STUDY, WHY, make_findings
from tests.study.making import cell, plan_of, record, spec_of

ALL = [
    "winners", "gaps", "size", "transfer", "search", "labels", "kinds", "kept", "final-test", "races",
    "failures", "repeat",
]  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;"


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return make_findings(tmp_path_factory.mktemp("rich"), STUDY)


def sections_of(findings):
    return {section.id: section for section in build_sections(findings)}


def small(tmp_path, records):
    """Findings of a ledger with these records alone."""
    spec = spec_of(tmp_path)
    summaries = summarise(records, 2)
    return Findings(
        spec, plan_of(spec, places=False), tuple(records), summaries, conclude(summaries, 0.01)
    )


class Outline(HTMLParser):
    """Tags that are opened and not closed, headings, tables and what they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.captions = self.tables = self.plots = self.named_plots = 0
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        if values.get("class") == "plot":
            self.plots += 1
            self.named_plots += bool(values.get("aria-label")) and values.get("role") == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_has_every_section_that_has_content(rich):
    assert list(sections_of(rich)) == ALL
    text = build_page(rich)
    for sentence in rich.to_json()["conclusions"]["sentences"]:
        assert html.escape(sentence.replace(" %", "\u00a0%")) in text
    assert "Does a frozen clinical model keep up" in text, "the study file's question"
    assert "raymrc run" in text and "c" * 64 in text and "torch 2.13.0" in text


def test_the_command_to_repeat_a_study_includes_its_overrides(rich):
    place = rich.spec.path
    changes = [
        "mlflow.tracking_uri=http://me:secret@there:5000",
        "strategies.fine_tune.learning_rate=[1.0e-5, 3.0e-5]",
    ]
    spec = load_spec(place, changes)
    assert spec.arguments.endswith(
        "study.yaml --set mlflow.tracking_uri=http://there:5000 "
        "--set 'strategies.fine_tune.learning_rate=[1.0e-5, 3.0e-5]'"
    )
    text = html.unescape(build_page(replace(rich, spec=spec)))
    assert f"raymrc run {spec.arguments}" in text


def test_sections_with_nothing_to_show_are_left_out(tmp_path):
    alone = small(tmp_path, [record(f, started_at="2026-01-01T00:00:00+00:00") for f in (0, 1)])
    assert list(sections_of(alone)) == ["winners", "labels", "kept", "repeat"]
    nothing = small(tmp_path, [record(0, status="failed")])
    assert list(sections_of(nothing)) == ["failures", "repeat"]
    assert build_facts(nothing)[0].value == "Nothing to compare yet"
    assert "Nothing to compare yet: no backbone has both" in build_page(nothing)


def test_the_final_test_shows_intervals_over_notes_and_its_gaps(rich):
    section = sections_of(rich)["final-test"]
    (plot,) = section.plots
    assert plot.table is not None and len(plot.table.rows) == len(rich.finals) > 1
    for row, score in zip(plot.table.cells, rich.finals, strict=True):
        assert row[1] == f"{100 * score.strict.mean:.2f}"
        assert row[3] == interval_text(score.interval) != "-"
    assert list(section.lead) == [final_sentence(gap) for gap in rich.final_gaps] != []


def test_mentions_on_the_way_to_relations_have_a_table(tmp_path):
    notes = {
        "n": NoteCounts({}, {}, mentions={"Drug": Counts(3, 1, 1), BOTH_FOUND: Counts(1, 0, 3)})
    }
    alone = small(tmp_path, [replace(record(f), notes=notes) for f in (0, 1)])
    (table,) = sections_of(alone)["kinds"].tables
    assert [row[1] for row in table.cells] == ["Drug", BOTH_FOUND]


def test_f1_by_size_shows_the_winners_and_the_fitted_slope(rich):
    (plot,) = (p for p in sections_of(rich)["size"].plots if p.title.startswith("F1 by size"))
    (fitted,) = rich.conclusions.by_size
    assert plot.table is not None
    stated = {(row[0], row[1]): row for row in plot.table.cells}
    assert len(stated) == 16
    for summary in rich.summaries:
        row, cell = stated[summary.cell.strategy, summary.cell.backbone.name], summary.cell
        assert row[3] == f"{100 * summary.winner.strict.mean:.2f}"
        assert row[6] == f"{100 * fitted.f1[cell.strategy].slope:+.1f}"
    drawn = [trace for trace in plot.figure["data"] if len(trace["x"]) == 4]
    assert len(drawn) == 4 and all(list(t["x"]) == sorted({*t["x"]}) for t in drawn)


def test_plots_of_an_empty_study_are_none_and_an_unwritable_folder_is_an_error(tmp_path):
    nothing = small(tmp_path, [record(0, status="failed")])
    assert list(write_plots(nothing, tmp_path).iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        write_plots(nothing, tmp_path / "file")


def test_plots_are_also_written_as_files_that_plotly_reads(rich, tmp_path):
    from plotly.io import read_json

    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "gone-1.json").write_text("{}")
    folder = write_plots(rich, tmp_path)
    plots = {
        f"{section.id}-{number}.json": plot
        for section in build_sections(rich)
        for number, plot in enumerate(section.plots, start=1)
    }
    assert {path.name for path in folder.iterdir()} == plots.keys() and len(plots) > 20
    for name, plot in plots.items():
        figure = read_json(folder / name)
        assert [len(trace.x) for trace in figure.data if trace.type == "scatter"] == [
            len(trace["x"]) for trace in plot.figure["data"] if trace["type"] == "scatter"
        ]
        assert figure.layout.height == plot.figure["layout"].get("height")


@pytest.mark.parametrize("attaches", [False, True])
def test_a_page_is_written_whether_or_not_mlflow_takes_it(tmp_path, capsys, attaches):
    """Where MLflow was just waited for in vain it is not asked once more."""
    away = tmp_path / "away"
    away.write_text("a file where the folder should be")
    changes = [
        f"mlflow.tracking_uri=sqlite:///{away / 'mlflow.db'}",
        f"storage={tmp_path / 'runs'}",
    ]
    findings = replace(small(tmp_path, [record(0)]), spec=spec_of(tmp_path, overrides=changes))
    write_page(findings, attaches=attaches)
    assert (tmp_path / "runs" / "report" / "tiny.html").exists()
    assert ("MLflow" in capsys.readouterr().err) == attaches


def test_tables_and_plots_show_the_numbers_of_the_findings(rich):
    """Each cell's F1 stands in the table, and is drawn where the table says."""
    section = sections_of(rich)["winners"]
    (table,), (plot,) = section.tables, section.plots
    stated = {row[0]: row[1] for row in table.cells}
    drawn = {
        text.partition("<br>")[0]: y
        for trace in plot.figure["data"]
        for text, y in zip(trace["text"], trace["y"], strict=True)
    }
    assert len(stated) == 16 and stated.keys() == drawn.keys()
    for summary in rich.summaries:
        name = summary.cell.name.removeprefix("synthetic-n2c2-2018/")
        assert stated[name] == f"{100 * summary.winner.strict.mean:.2f}"
        assert drawn[name] == pytest.approx(100 * summary.winner.strict.mean)
    gaps = gap_table(rich.summaries, rich.conclusions)
    assert f'<th scope="row" class="left">{gaps.cells[0][0]}</th>' in build_page(rich)
    home = {conclusion.gap.backbone: conclusion for conclusion in rich.conclusions.gaps}
    for row in gaps.cells:
        if row[0] in home:
            assert row[4] == f"{100 * home[row[0]].home.comparison.difference:.2f}"
    assert len(gaps.rows) == 8, "each gap, at home and at the other site"


def in_points(value):
    return f"{100 * value:.2f}"


def name_of(summary):
    return summary.cell.name.removeprefix("synthetic-n2c2-2018/")


def f1_of(counts):
    """Micro F1 of many counts, written out once more."""
    counts = list(counts)
    tp, fp, fn = (sum(getattr(c, field) for c in counts) for field in ("tp", "fp", "fn"))
    return 2 * tp / (2 * tp + fp + fn)


def strict_f1(record, site=None, labels=None):
    notes = record.notes if site is None else record.transfer[site]
    return f1_of(
        c for n in notes.values() for label, c in n.strict.items() if not labels or label in labels
    )


def test_each_gap_shows_the_price_of_a_point(rich):
    (table,) = sections_of(rich)["gaps"].tables
    assert table.columns[-1].name == "price of a point"
    priced = 0
    for (_, conclusion), row in zip(rich.conclusions.compared, table.cells, strict=True):
        extra = conclusion.extra_usd / (100 * conclusion.home.comparison.difference)
        if conclusion.extra_usd > 0 and conclusion.home.comparison.difference > 0:
            assert row[-1].startswith(f"{extra:.2g} USD (") and " to " in row[-1]
            priced += 1
        else:
            assert row[-1] == "-"
    assert priced > 1


def test_the_luck_of_the_choice_is_shown_per_cell(rich):
    luck, *listed = sections_of(rich)["search"].tables
    assert "choosing the best" in luck.title and len(listed) == 16
    several = {name_of(s): s for s in rich.summaries
               if sum(c.is_complete for c in s.configurations) > 1}  # fmt: skip
    assert {row[0] for row in luck.cells} == several.keys()
    for name, tried, scored, owed, without in luck.cells:
        assert tried == str(sum(c.is_complete for c in several[name].configurations))
        assert scored == in_points(several[name].winner.strict.mean)
        assert float(scored) - float(owed) == pytest.approx(float(without), abs=0.011)


def test_other_sites_show_intervals_and_the_numbers_of_their_records(rich):
    (plot,) = sections_of(rich)["transfer"].plots
    assert len(plot.table.rows) == 16
    by_name = {name_of(s): s.winner for s in rich.summaries}
    for name, home, home_sd, away, _, over_notes, drop, drop_sd, of_drop in plot.table.cells:
        runs = by_name[name].fold_runs
        both = ("Drug", "ADE")
        at_home = [strict_f1(r, labels=both) for r in runs]
        at_site = [strict_f1(r, "hospital-b") for r in runs]
        drops = [h - a for h, a in zip(at_home, at_site, strict=True)]
        assert [home, away, drop] == [
            in_points(statistics.fmean(values)) for values in (at_home, at_site, drops)
        ]
        assert [home_sd, drop_sd] == [
            in_points(statistics.stdev(values)) for values in (at_home, drops)
        ]
        for interval, middle in ((over_notes, away), (of_drop, drop)):
            low, high = map(float, interval.split(" to "))
            assert low < float(middle) < high
    stated = json.loads(json.dumps(rich.conclusions.to_json()))["sites"]
    assert len(stated) == 16 and {entry["site"] for entry in stated} == {"hospital-b"}


def test_labels_shares_and_stopped_configurations_match_the_records(rich):
    sections = sections_of(rich)
    by_name = {name_of(s): s for s in rich.summaries}
    (labels,) = sections["labels"].tables
    assert len(labels.rows) == 4 * 16
    for label, name, gold, _, _, strict, lenient in labels.cells:
        runs = by_name[name].winner.fold_runs
        exact = [n.strict[label] for r in runs for n in r.notes.values()]
        loose = [n.lenient[label] for r in runs for n in r.notes.values()]
        assert gold == f"{sum(c.tp + c.fn for c in exact):,}"
        assert (strict, lenient) == (in_points(f1_of(exact)), in_points(f1_of(loose)))
    (heat,) = sections["labels"].plots
    drawn = heat.figure["data"][0]
    for name, row in zip(drawn["y"], drawn["z"], strict=True):
        f1_by_label = {r[0]: r[5] for r in labels.cells if r[1] == name}
        assert [f"{value:.2f}" for value in row] == [f1_by_label[label] for label in drawn["x"]]
    (kept,) = sections["kept"].tables
    for row in kept.cells:
        run = by_name[row[0]].winner.fold_runs[0]
        share = run.trained_parameters / run.total_parameters
        assert float(row[3].rstrip(" %")) == pytest.approx(100 * share, rel=0.01)
    raced, stopped = sections["races"].tables
    for name, tried, beaten, epochs, *_ in raced.cells:
        cell_runs = [r for r in rich.fold_runs if not r.fold_run.is_test
                     and r.fold_run.configuration.cell == by_name[name].cell]  # fmt: skip
        stopped_ids = {r.fold_run.configuration.id for r in cell_runs if r.status == "stopped"}
        assert (int(tried), int(beaten)) == (len(by_name[name].configurations), len(stopped_ids))
        assert int(epochs.replace(",", "")) == sum(len(r.epochs) for r in cell_runs)
    assert {row[3] for row in stopped.cells} == {WHY}
    (failed,) = sections["failures"].tables
    assert {row[2] for row in failed.cells} == {"the loss is not a number at step 12"}


def test_heat_maps_and_curves_draw_the_means_of_the_records(rich, tmp_path):
    by_name = {name_of(s): s for s in rich.summaries}
    search = sections_of(rich)["search"].plots
    maps = [p for p in search if p.figure["data"][0]["type"] == "heatmap"]
    for plot in maps:
        drawn = plot.figure["data"][0]
        for entry in by_name[plot.title].configurations:
            if entry.strict.mean is None:
                continue
            row = list(drawn["y"]).index(f"{entry.configuration.learning_rate:.4g}")
            column = list(drawn["x"]).index(str(entry.configuration.prompt_length))
            mean = statistics.fmean(strict_f1(r) for r in entry.fold_runs)
            assert drawn["z"][row][column] == pytest.approx(100 * mean)
    few = make_findings(tmp_path, FEW_SHOT, with_course=False)
    names = {s.cell.strategy for s in few.summaries}
    for plot in sections_of(few)["few-shot"].plots:
        (backbone,) = {
            s.cell.backbone.name for s in few.summaries if s.cell.backbone.name in plot.title
        }
        for strategy, shots, f1, sd, interval in plot.table.cells:
            (winner,) = (s.winner for s in few.summaries if s.cell.strategy == strategy
                         and s.cell.shots == int(shots) and s.cell.backbone.name == backbone)  # fmt: skip
            scores = [strict_f1(r) for r in winner.fold_runs]
            assert (f1, sd) == (
                in_points(statistics.fmean(scores)),
                in_points(statistics.stdev(scores)),
            )
            assert interval != "-"
        assert {row[0] for row in plot.table.cells} == names


def test_strategies_differ_in_symbol_as_well_as_colour(rich):
    traces = sections_of(rich)["winners"].plots[0].figure["data"]
    looks = {
        trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces
    }
    colours, symbols = zip(*looks.values(), strict=True)
    assert len(looks) == len(set(colours)) == len(set(symbols)) == 4


def test_a_grid_is_a_heat_map_with_its_spread_and_its_winner(rich):
    heat = [
        plot
        for plot in sections_of(rich)["search"].plots
        if plot.figure["data"][0]["type"] == "heatmap"
    ]
    assert len(heat) == 8, "soft and frozen prompts of four backbones vary two settings"
    for plot in heat:
        words = [word for row in plot.figure["data"][0]["text"] for word in row]
        assert sum(word.startswith("★") for word in words) == 1
        assert "stopped" in words and all("±" in w for w in words if w != "stopped")
        assert plot.table is not None


def test_few_notes_are_curves_with_intervals(tmp_path):
    found = sections_of(make_findings(tmp_path, FEW_SHOT, with_course=False))
    curves = found["few-shot"].plots
    assert [sorted(trace["x"]) for trace in curves[0].figure["data"]] == [[5, 10, 20, 50]] * 3
    assert all(trace["error_y"]["array"][0] > 0 for trace in curves[0].figure["data"])
    by_length = [p for p in found["search"].plots if p.title.startswith("By prompt length")]
    assert len(by_length) == 8, "two backbones, four numbers of notes"


def test_sampled_settings_are_shown_as_points(tmp_path):
    """Of drawn rates no two configurations have the same: a heat map would be holes, a curve a zigzag."""
    rates = "{log_uniform: [5.0e-3, 3.0e-1]}"
    search = f"  frozen_soft_prompt: {{learning_rate: {rates}, prompt_length: [8, 16, 32]}}"
    drawn = re.sub("  (fine_tune|soft|frozen).*\n", "", FEW_SHOT).replace("few_shot", "# few_shot")
    drawn = drawn.replace("strategies:", f"strategies:\n{search}").replace("ions: 4", "ions: 9")
    plots = sections_of(make_findings(tmp_path, drawn, with_course=False))["search"].plots
    assert not [plot for plot in plots if plot.title.startswith("By learning rate")]
    for plot in plots[:2]:
        (trace,) = plot.figure["data"]
        assert trace["type"] == "scatter" and len(trace["x"]) == len(trace["marker"]["color"]) == 9


def test_the_decision_tile_agrees_with_the_verdict(tmp_path, rich):
    decision = build_facts(rich)[0]
    assert decision.value == "Not enough data"
    assert decision.more == "gatortron-8.9b frozen vs gatortron-8.9b trained"
    # Of one number of few examples it says nothing about the others.
    few = make_findings(tmp_path, FEW_SHOT)
    first = [s for s in few.summaries if s.cell.shots == 5 or s.cell.backbone.name == "bert-large"]
    begun = replace(few, summaries=tuple(first), conclusions=conclude(first, 0.01))
    assert len(begun.conclusions.overall) == 1
    assert build_facts(begun)[0].more == "in all 5 comparisons"
    good, poor = {"Drug": Counts(9, 1, 1)}, {"Drug": Counts(2, 8, 8)}
    one_sided = [
        record(f, cell=cell(strategy), counts=counts, validation_f1=0.5 + f / 100)
        for strategy, counts in (("soft_prompt", good), ("frozen_soft_prompt", poor))
        for f in (0, 1)
    ]
    assert build_facts(small(tmp_path, one_sided))[0].value == "Not enough data"
    fair = [{"Drug": Counts(5, 5 + f, 5)} for f in range(4)]
    fewer = [
        record(f, cell=replace(cell(strategy), shots=5), counts=counts)
        for strategy, by_fold in (("soft_prompt", fair), ("frozen_soft_prompt", fair[::-1]))
        for f, counts in enumerate(by_fold)
    ]
    clear = [
        record(f, cell=cell(strategy), counts={"Drug": Counts(tp, 10 - tp + f % 2, 10 - tp)})
        for strategy, tp in (("soft_prompt", 9), ("frozen_soft_prompt", 2))
        for f in range(4)
    ]
    summaries = summarise([*fewer, *clear], 4)
    mixed = replace(small(tmp_path, []), summaries=summaries, conclusions=conclude(summaries, 0.01))
    assert build_facts(mixed)[0].value == "It depends"


def test_text_from_a_study_is_escaped_and_never_executed(tmp_path):
    """Labels, reasons and machines are other people's words."""
    words = {HOSTILE: Counts(5, 1, 1)}
    done = [
        replace(record(f, counts=words, started_at="2026-01-01"), hardware=HOSTILE) for f in (0, 1)
    ]
    failed = replace(record(2, status="failed"), reason=HOSTILE)
    text = build_page(small(tmp_path, [*done, failed]))
    assert "<img" not in text.partition("<script>")[0]
    assert text.count("</script>") == text.count("<script"), "nothing has ended a script early"
    assert data(["</script>"]) == '["\\u003c/script>"]'
    assert "&lt;/script&gt;&lt;img" in text


def test_the_page_is_valid_accessible_and_reproducible(tmp_path, rich):
    path = write(rich, tmp_path / "new" / "folder")
    assert path.name == "concepts-by-size.html"
    first = path.read_bytes()
    assert write(rich, path.parent).read_bytes() == first
    assert list(path.parent.iterdir()) == [path], "nothing half-written stays"
    text = first.decode().replace(build_plotly(), "")
    outline = Outline()
    outline.feed(text)
    assert outline.open == [] and outline.headings[0] == "h1" and outline.headings.count("h1") == 1
    assert outline.tables == outline.captions > 10
    assert outline.plots == outline.named_plots > 10
    assert len(outline.ids) == len(set(outline.ids))
    links = re.findall(r'href="#([\w-]+)"', text)
    assert set(links) <= set(outline.ids) and len(links) == len(ALL) + 2
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text), "nothing is fetched"
    assert len(first) < 6_000_000


def build_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_an_unwritable_folder_is_reported_in_one_sentence(tmp_path, rich):
    from raymrc.errors import StudyError

    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot be written .*; choose a folder"):
        write(rich, tmp_path / "file")


# --- in a browser -----------------------------------------------------------------------------------

REAL = """\
# Do tiny models know a drug when they see one?
study: real
task: concepts
corpus: {reader: brat, path: notes}
folds: {count: 3, validation_share: 0.3}
backbones:
  - {name: tiny, source: backbone}
strategies:
  fine_tune: {learning_rate: [1.0e-3, 1.0e-2]}
  frozen_soft_prompt: {learning_rate: [2.0e-2, 1.0e-1], prompt_length: [2, 4]}
training: {epochs: 2, window: 32, overlap: 8, match_width: 8}
storage: runs/real
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with a study whose every fold-run was really trained, in this process."""
    from raymrc.cli.job import prepare_study
    from raymrc.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("real")
    draw, notes = random.Random(3), {}
    for number in range(12):
        words = draw.choices(WORDS, k=20)
        words[number % 15] = "aspirin"
        text = " ".join(words) + "\n"
        start = text.index("aspirin")
        notes[f"note{number}"] = (text, f"T1\tDrug {start} {start + 7}\taspirin\n")
    write_notes(folder / "notes", notes)
    tiny_checkpoint("bert", folder / "backbone", num_layers=2)
    (folder / "study.yaml").write_text(REAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        job = prepare_study(Path("study.yaml"), None)
        pool = Trainer().open_pool(job.spec.backbones[0].backbone, job.data)
        for cell in job.plan.cells:
            for configuration in cell.configurations:
                for fold in range(job.plan.folds):
                    pool.open(fold_run(configuration, fold, job.plan.fingerprints))
        while len(pool):
            for event in pool.step():
                assert not isinstance(event.what, Exception)
                if isinstance(event.what, Record):
                    job.ledger.record(event.what)
        assert main(["report", "study.yaml", "--html", "out"]) == 0
    return folder


@needs_chromium
@pytest.mark.slow
def test_a_real_study_s_page_is_drawn_in_a_browser_on_any_screen(real):
    page = real / "out" / "real.html"
    with browser() as chromium:
        for width in (1280, 400):
            visit = Visit(chromium, page, width)
            count = visit.page.locator(".plot").count()
            assert visit.see_all() == count >= 6
            assert visit.overflow == 0
            assert visit.wrong == []
            # Of each plot something stands in its field: marks, cells of a heat map, points.
            shapes = visit.page.evaluate(
                "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll("
                "'.scatterlayer path, .heatmaplayer image').length)"
            )
            assert all(shapes), shapes
        tables = visit.page.locator("table")
        assert tables.count() > 5
        # A click shows what is folded away; the contents lead to their section.
        visit.page.locator("nav a", has_text="By label").click()
        visit.page.wait_for_url("**#labels")
        visit.page.emulate_media(media="print")
        assert not visit.page.locator("nav").is_visible()


FREEZE_COLOUR, TRAIN_COLOUR, INK = "rgb(168, 72, 10)", "rgb(0, 85, 138)", "rgb(31, 41, 51)"


@needs_chromium
@pytest.mark.parametrize(
    "outcome, value, colour",
    [
        (AHEAD, "Freeze", FREEZE_COLOUR),
        (EQUIVALENT, "Freeze", FREEZE_COLOUR),
        (BEHIND, "Train the backbone", TRAIN_COLOUR),
        (UNSURE, "Not enough data", INK),
    ],
)
def test_the_decision_s_tile_has_the_colour_of_its_strategy(rich, tmp_path, outcome, value, colour):
    """Freezing is orange and training blue, like their strategies in plots; unsure is neither."""
    (best,) = rich.conclusions.overall
    home = replace(best.conclusion.home, outcome=outcome)
    best = replace(best, conclusion=replace(best.conclusion, home=home))
    judged = replace(rich, conclusions=replace(rich.conclusions, overall=(best,)))
    with browser() as chromium:
        visit = Visit(chromium, write(judged, tmp_path), 1280)
        tile = visit.page.locator(".fact").first
        assert tile.locator("dt").inner_text() == "Decision"
        assert tile.locator(".value").inner_text() == value
        computed = "(element, name) => getComputedStyle(element)[name]"
        assert tile.locator(".value").evaluate(computed, "color") == colour
        edge = tile.evaluate(computed, "borderTopColor")
        assert edge == (colour if outcome != UNSURE else "rgb(82, 96, 109)")
    red, _, blue = (int(part) for part in re.findall(r"\d+", colour))
    assert {FREEZE_COLOUR: red > blue, TRAIN_COLOUR: red < blue}.get(colour, True)


@needs_chromium
@pytest.mark.slow
def test_plots_of_larger_studies_are_drawn_on_any_screen(rich, tmp_path):
    pages = [write(found, tmp_path) for found in (rich, make_findings(tmp_path, FEW_SHOT))]
    with browser() as chromium:
        for page, width in zip(pages, (400, 1280), strict=True):
            visit = Visit(chromium, page, width)
            assert visit.see_all() == visit.page.locator(".plot").count() > 4
            assert (visit.overflow, visit.wrong) == (0, [])


@needs_chromium
@pytest.mark.slow
def test_print_draws_every_plot_and_opens_everything_folded(real, tmp_path):
    with browser() as chromium:
        visit = Visit(chromium, real / "out" / "real.html", 1280)
        plots, drawn = visit.page.locator(".plot"), visit.page.locator("[data-state=drawn]")
        assert drawn.count() < plots.count(), "nobody has scrolled"
        folded = visit.page.locator("details:not([open])").count()
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert (
            drawn.count() == plots.count()
            and visit.page.locator("details:not([open])").count() == 0
        )
        widths = visit.page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p._fullLayout.width)"
        )
        assert set(widths) == {680}
        visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.page.locator("details:not([open])").count() == folded
        pdf = visit.page.pdf(path=tmp_path / "page.pdf", format="A4")
        assert (
            pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 3
        )
        assert visit.wrong == []


def test_terminal_and_page_open_with_the_same_verdict_and_then_its_table(real, monkeypatch, capsys):
    monkeypatch.chdir(real)
    assert main(["report", "study.yaml"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert main(["report", "study.yaml", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["conclusions"]["sentences"]
    assert shown.startswith(f"{verdict} Frozen vs trained: F1 difference in points")
    text = html.unescape((real / "out" / "real.html").read_text()).replace("\u00a0", " ")
    page = " ".join(re.sub(r"<[^>]+>", " ", text.partition('id="decision"')[2]).split())
    _, _, page = page.partition("The decision ")
    assert page.startswith(f"{verdict} Frozen vs trained: F1 difference in points")


@pytest.mark.filterwarnings("ignore")  # MLflow's, about its own database
def test_sync_gives_the_study_s_run_its_page_and_plots(real, monkeypatch):
    import mlflow

    monkeypatch.chdir(real)
    spec = load_spec(Path("study.yaml"))
    done = raymrc("sync", "study.yaml", folder=real)
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(spec.tracking_uri)
    experiment = client.get_experiment_by_name("real")
    (run,) = client.search_runs([experiment.experiment_id], "tags.level = 'study'")
    top = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert top == {"real.html", "plots"}
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {f"plots/{path.name}" for path in (real / "runs/real/report/plots").iterdir()}
    assert len(plots) >= 6


@needs_chromium
@pytest.mark.slow
def test_the_browser_test_detects_a_broken_page(real, tmp_path):
    """The positive control: a font from the network, a wide table and a figure that is none."""
    text = (real / "out" / "real.html").read_text()
    policy = re.search(r"<meta http-equiv[^>]*>", text).group()
    wide = '<div style="width:3000px">wide</div><img src="http://127.0.0.1:9/x.png">'
    broken = text.replace(policy, "").replace("<main>", f"<main>{wide}")
    (tmp_path / "broken.html").write_text(broken)
    (tmp_path / "blocked.html").write_text(text.replace("<main>", f"<main>{wide}"))
    with browser() as chromium:
        visit = Visit(chromium, tmp_path / "broken.html", 1280)
        assert visit.overflow > 1000
        assert "http://127.0.0.1:9/x.png" in visit.wrong
        blocked = Visit(chromium, tmp_path / "blocked.html", 1280)
        assert any("Content Security Policy" in text for text in blocked.wrong)


def test_a_real_study_is_exported_and_compared_by_command(real, monkeypatch, capsys):
    monkeypatch.chdir(real)
    assert main(["export", "study.yaml", "--csv", "csv", "--parquet", "parquet"]) == 0
    assert len((real / "csv" / "fold_runs.csv").read_text().splitlines()) == 1 + 18
    assert not re.search(r"\bnote\d", (real / "csv" / "labels.csv").read_text())
    other = REAL.replace("study: real", "study: other").replace("[1.0e-3, 1.0e-2]", "1.0e-3")
    (real / "other.yaml").write_text(other)
    capsys.readouterr()
    assert main(["compare", "study.yaml", "other.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["paired"] for entry in found["both"]] == ["same folds"] * 2
    assert [entry["field"] for entry in found["settings"]] == [
        "study",
        "strategies.fine_tune.learning_rate",
    ]
    assert main(["compare", "study.yaml", "other.yaml"]) == 0
    assert "Settings in which the study files differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "study.yaml"], "give --csv DIR, --parquet DIR or both"),
        (["export", "study.yaml", "--csv", "study.yaml"], "choose a folder that you may write to"),
        (["report", "study.yaml", "--html", "study.yaml"], "choose a folder that you may write to"),
        (["compare", "study.yaml", "absent.yaml"], "absent.yaml"),
    ],
)
def test_unreadable_and_unwritable_files_are_reported_in_one_sentence(
    real, arguments, message, monkeypatch, capsys
):
    monkeypatch.chdir(real)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and "Traceback" not in output.err and output.out == ""


def test_the_page_of_a_real_study_holds_no_text_of_its_notes(real):
    page = (real / "out" / "real.html").read_text()
    for note in (real / "notes").glob("*.txt"):
        assert note.read_text().strip()[:40] not in page
    assert not re.search(r"\bnote\d+\b", page), "nor a note's id"


def test_the_page_does_not_grow_with_the_number_of_notes(tmp_path):
    """What is embedded grows with cells and configurations, not with notes or epochs."""
    few = [record(f) for f in (0, 1)]
    many = [
        replace(r, notes={f"n-{i}": NoteCounts(*[dict(r.notes[f"note-{f}"].strict)] * 2)
                          for i in range(500)})
        for f, r in enumerate(few)
    ]  # fmt: skip
    sizes = [len(build_page(small(tmp_path, records))) for records in (few, many)]
    assert abs(sizes[0] - sizes[1]) < 200
