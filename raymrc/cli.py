"""The commands: parse, call one function, print, return a code.

Codes: 0 done, 1 finished with something failed, 2 the user must change something,
3 stopped by the budget, 130 interrupted and resumable. What a command answers goes to
stdout (with `--json` nothing but JSON), all talk to stderr. What is heavy is imported
inside the command that needs it, so that `--help` and `plan` stay quick.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from raymrc.errors import RaymrcError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymrc.corpora.note import Corpus
    from raymrc.model.adapters import Adapter
    from raymrc.reading.light_tokenizers import FileTokenizer, RoughTokenizer
    from raymrc.study.budget import Spent
    from raymrc.study.conclusions import Conclusions
    from raymrc.study.configuration import Cell
    from raymrc.study.earlier import RatePrior
    from raymrc.study.estimate import Measured
    from raymrc.study.forecast import Expectations
    from raymrc.study.ledger import Ledger
    from raymrc.study.plan import Plan
    from raymrc.study.record import Record
    from raymrc.study.spec import Spec
    from raymrc.study.verdict import CellSummary
    from raymrc.study.workload import Workload
    from raymrc.sweep.driver import StudyOutcome
    from raymrc.training.batching import StudyData

DONE, SOMETHING_FAILED, MUST_CHANGE, OUT_OF_BUDGET, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="Fine-tune a language model on clinical notes, or freeze it and train only soft prompts?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich would double the time of --help
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Study = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, such as folds.count=3."),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Tell Prometheus how it goes, at this port (dashboards/README.md)."
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give back its exit code.

    Args:
        arguments: without the program's name; None takes them from the command line.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="raymrc")
    except RaymrcError as error:
        _say(str(error))
        return MUST_CHANGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else SOMETHING_FAILED
    except Exception as error:
        _say(describe_bug(error))
        return SOMETHING_FAILED
    return DONE


def describe_bug(error: BaseException) -> str:
    """Where an error of ours came from, without messages or values: those may hold note text."""
    lines = ["an error inside raymrc, not of your making. Please report it with these lines:"]
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"  {type(cause).__module__}.{type(cause).__qualname__}, raised through")
        for frame in traceback.extract_tb(cause.__traceback__):
            lines.append(f"    {frame.filename}:{frame.lineno} {frame.name}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _answer_json(values: object) -> None:
    print(json.dumps(values, indent=2))


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="The corpus: a folder or a file.")],
    reader: Annotated[str, typer.Option(help="Its format, such as brat or n2c2-2018.")],
    as_json: AsJson = False,
) -> None:
    """Check notes before anything is trained on them."""
    from raymrc.corpora.problems import WARNING
    from raymrc.corpora.validate import validate as check

    validation = check(path, reader)
    if as_json:
        print(validation.to_json())
    else:
        for name, count in asdict(validation.counts).items() if validation.counts.notes else ():
            if name in ("labels", "relation_labels"):
                count = ", ".join(f"{label} {times}" for label, times in count) or "none"
            print(f"{name.replace('_', ' '):>20}  {count}")
        for problem in validation.problems:
            _say(f"warning: {problem}" if problem.severity == WARNING else str(problem))
    if not validation.ok:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def synthesize(
    scheme: Annotated[str, typer.Argument(help="n2c2-2018 (drugs) or n2c2-2022 (social history).")],
    out: Annotated[Path, typer.Argument(help="A new folder for the brat files.")],
    notes: Annotated[int, typer.Option(help="How many.")] = 100,
    site: Annotated[str, typer.Option(help="a or b: another style, another label prior.")] = "a",
    seed: Annotated[int, typer.Option(help="Equal seeds write equal notes.")] = 13,
) -> None:
    """Write made-up notes with exact annotations."""
    from raymrc.corpora.folders import new_folder
    from raymrc.corpora.formats import write_corpus
    from raymrc.corpora.synthetic import synthesize as make

    corpus = make(scheme, notes, site, seed)  # type: ignore[arg-type]  # it refuses what it lacks
    with new_folder(out) as folder:
        write_corpus(corpus, folder, scheme)
    _say(f"{out}: {len(corpus.notes)} notes. Read them with --reader {scheme}")


@app.command(context_settings={"allow_extra_args": True})
def score(
    context: typer.Context,
    gold: Annotated[Path, typer.Argument(help="Folder of .ann files, as they should be.")],
    system: Annotated[Path, typer.Argument(help="Folder of .ann files of the same names.")],
    scheme: Annotated[str, typer.Option(help="n2c2-2018 or n2c2-2022.")],
    criteria: Annotated[
        str, typer.Option(help="Of n2c2-2022: challenge, exact or overlap.")
    ] = "challenge",
    labeled_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE ...",
            help="Of n2c2-2022: argument types compared by value; SHAC's three if not given.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a system's annotations as the official scorers do."""
    from raymrc.errors import CorpusError
    from raymrc.scoring import n2c2_2018, n2c2_2022

    # As the official scorer has it, `--labeled-args A B` gives both; A,B and two options do, too.
    labeled = [name for text in labeled_args or () for name in text.split(",")]
    if context.args and labeled_args is None:
        raise typer.BadParameter(f"one folder too many: {context.args[0]}")
    if scheme == "n2c2-2018" and (labeled or criteria != "challenge"):
        raise CorpusError("--criteria and --labeled-args are of n2c2-2022; leave them out")
    if scheme == "n2c2-2018":
        drugs = n2c2_2018.score_folders(gold, system)
        answer, text = drugs.to_json(), n2c2_2018.render(drugs)
    elif scheme == "n2c2-2022":
        chosen = (*labeled, *context.args) if labeled_args else n2c2_2022.LABELED_ARGUMENTS
        social = n2c2_2022.score_folders(gold, system, criteria, chosen)
        answer, text = social.to_json(), n2c2_2022.render(social)
    else:
        raise CorpusError(f"there is no scheme '{scheme}'; choose n2c2-2018 or n2c2-2022")
    if as_json:
        _answer_json(answer)
    else:
        print(text, end="")


@app.command()
def plan(
    study: Study,
    as_json: AsJson = False,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own price table, as raymrc/study/prices.yaml."),
    ] = None,
    instances: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=N", help="Machines to reckon with, such as g5.xlarge=4."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure on this device first, for about a minute.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Say what a study will train and what it will cost, before anything starts."""
    from raymrc.errors import CorpusError
    from raymrc.model.backbones import find
    from raymrc.study.budget import Budget
    from raymrc.study.forecast import forecast, shares_done, write_probe
    from raymrc.study.plan import render
    from raymrc.study.prices import read_cluster, read_prices
    from raymrc.study.status import exceeds

    spec = _load(study, changes)
    table = read_prices(prices)
    cluster = read_cluster(instances, table) if instances else None
    for entry in spec.backbones if probe else ():
        find(entry.backbone)  # fetched where it must be: all else only looks
    planned, workload, ledger = _plan_at_hand(spec)
    costs = None
    if workload is not None:
        if probe:
            write_probe(spec.storage, [])  # where nothing can be kept, no minute is spent
            place = write_probe(spec.storage, _run_probes(spec, planned, workload))
            _say(f"what was measured: {place}")
        records = ledger.records() if ledger is not None else ()
        measured, done = _measured(spec, planned, workload, records), shares_done(planned, records)
        costs = forecast(spec, planned, workload, measured, done, table, cluster)
    elif probe:
        raise CorpusError("--probe trains on a few of the study's notes, which are not here")
    if costs is not None and spec.budget is not None:
        said = exceeds(Budget.of(spec), _spent(spec), costs)
        costs = replace(costs, remarks=(*costs.remarks, said)) if said else costs
    if as_json:
        _answer_json(planned.to_json(costs))
    else:
        _print_table(render(planned, costs))


def _plan_at_hand(spec: Spec) -> tuple[Plan, Workload | None, Ledger | None]:
    """A study's plan by what is on this machine, what its fold-runs have to do where the notes are here, and
    its ledger if there is one. Nothing is fetched or made."""
    from raymrc.study.plan import plan_study

    corpus, ledger = _corpus_at_hand(spec), _ledger_at_hand(spec)
    initial_prompt = _initial_prompt_at_hand(spec)
    weights = _weights_at_hand(spec) if ledger or initial_prompt else None
    transfer = _transfer_at_hand(spec, corpus)
    planned = plan_study(
        spec, corpus, weights, ledger, transfer=transfer, initial_prompt=initial_prompt
    )
    if corpus is None or transfer is None:
        return planned, None, ledger
    return planned, _workload(spec, planned, corpus, transfer), ledger


def _workload(
    spec: Spec, planned: Plan, corpus: Corpus, transfer: Mapping[str, Corpus]
) -> Workload:
    """What a plan's fold-runs have to do."""
    from raymrc.study.forecast import build_workload

    return build_workload(spec, planned, corpus, transfer, _tokenizers_at_hand(spec))


def _measured(
    spec: Spec, planned: Plan, workload: Workload, records: Sequence[Record]
) -> list[Measured]:
    """What is known of its cost: by the ledger and a probe, if there was one."""
    from raymrc.study.forecast import read_history, read_probe

    return [*read_history(planned, workload, records), *read_probe(spec.storage)]


def _spent(spec: Spec) -> Spent:
    """By all runs of a study until now."""
    from raymrc.study.budget import Journal, spent_by

    entries = Journal(spec.storage).entries()
    return spent_by(entries, spec.prices.device_hour_usd, time.time())


def _run_probes(spec: Spec, planned: Plan, workload: Workload) -> list[Measured]:
    """Each backbone under each strategy, once.

    Raises:
        StudyError: nothing could be measured.
    """
    from raymrc.errors import StudyError
    from raymrc.study.forecast import SECONDS_OF_PROBE, choose_probed
    from raymrc.training.probe import Probe, run_probes
    from raymrc.training.trainer import Trainer

    resources = spec.resources
    chosen, left_out = choose_probed(planned)
    for sentence in left_out:
        _say(sentence)
    trainer = Trainer(
        "cuda" if resources.gpus_per_host else "cpu",
        gpus=resources.gpus_per_host or 1.0,
        recomputes=frozenset(one.cell for one in chosen if one.recomputes),
    )
    probes = [
        Probe(
            one.configurations, one.shape, one.lanes, trainer, workload.corpus,
            dict(workload.questions), max(1, int(resources.cpus_per_host)),
            SECONDS_OF_PROBE / len(chosen),
        )
        for one in chosen
    ]  # fmt: skip
    measured = run_probes(probes, _say)
    if not measured:
        raise StudyError("--probe could measure none of the study's cells on this device")
    return measured


@app.command()
def run(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train what the study's ledger lacks, and print who won."""
    from raymrc.study.verdict import render

    job = _prepare(study, changes)
    # Held-out notes were looked at for what is in both; no host needs to see them.
    outcome = _train(replace(job, data=replace(job.data, test=None)), job.plan, metrics_port)
    summaries = _summarise(job.spec, job.plan, job.ledger.records())
    _print_table(render(summaries))
    _print_conclusions(_conclude(job.spec, summaries, job.data.corpus, job.data.transfer))
    _tell(job.spec, outcome)


@app.command("test")
def final_test(study: Study, changes: Changes = None, metrics_port: MetricsPort = None) -> None:
    """Train each cell's winner on all notes, and score the held-out notes once."""
    from raymrc.errors import SpecError
    from raymrc.study.final import plan_final_test, write_predictions

    job = _prepare(study, changes)
    if job.data.test is None:
        raise SpecError(
            f"{study}: the study holds no notes out; give it a final_test, with a corpus or a share"
        )
    records = job.ledger.records()
    summaries = _summarise(job.spec, job.plan, records)
    final = plan_final_test(job.spec, job.plan, summaries, records, job.data.test)
    outcome = _train(job, final, metrics_port)
    records = job.ledger.records()
    asked = job.data.asked(job.spec.task)
    _print_final(records, summaries)
    folder = job.spec.folder / "predictions"
    if write_predictions(records, job.data.test, folder, asked.triggers):
        _say(f"what was found, as brat: {folder}; what was trained: {job.spec.storage}/adapters")
    _tell(job.spec, outcome)


@dataclass(frozen=True)
class _Job:
    """A study that is ready to be trained."""

    spec: Spec
    plan: Plan
    data: StudyData
    ledger: Ledger


def _prepare(study: Path, changes: list[str] | None) -> _Job:
    """All that can be wrong is looked at before anything is written: the ledger comes last."""
    from raymrc.model.adapters import read_prompt
    from raymrc.model.backbones import check_weights, find, weights_fingerprint
    from raymrc.reading.questions import build_questions
    from raymrc.reading.relations import find_asked
    from raymrc.study.ledger import Ledger
    from raymrc.study.plan import (
        build_study_folds,
        check_unseen,
        plan_study,
        read_initial_prompt,
        read_study_corpus,
        read_test,
        read_transfer,
    )

    spec = _load(study, changes)
    adapter = read_initial_prompt(spec)
    corpus = read_study_corpus(spec)
    backbones = [entry.backbone for entry in spec.backbones]
    weights = {backbone.name: weights_fingerprint(find(backbone)) for backbone in backbones}
    transfer, test = read_transfer(spec, corpus), read_test(spec, corpus)
    check_unseen(spec, adapter, corpus, *transfer.values(), test)
    plan = plan_study(spec, corpus, weights, transfer=transfer, initial_prompt=adapter)
    # Seconds of imports, which no mistake above should have to wait for.
    from raymrc.training.batching import StudyData
    from raymrc.training.trainer import check_questions_fit

    for backbone in backbones:
        check_weights(backbone)
    asked = find_asked(spec.task, corpus)
    questions = build_questions(asked.labels, spec.questions, asked.relations)
    check_questions_fit(plan, asked, questions)
    starts_from_it = any(cell.starts_from_adapter for cell in plan.cells)
    initial_prompt = read_prompt(adapter) if adapter is not None and starts_from_it else None
    ledger = Ledger(spec.storage)
    ledger.check()
    folds = build_study_folds(spec, corpus)
    data = StudyData(corpus, folds, questions, transfer, test, initial_prompt)
    return _Job(spec, plan, data, ledger)


def _train(job: _Job, plan: Plan, metrics_port: int | None) -> StudyOutcome:
    """What the ledger lacks of a plan."""
    from raymrc.study.budget import Budget
    from raymrc.study.files import absolute
    from raymrc.study.plan import render
    from raymrc.training.trainer import Trainer

    spec, ledger = job.spec, job.ledger
    if metrics_port is not None and os.environ.get("RAY_ADDRESS"):
        _say(
            "--metrics-port has no effect on a cluster that is there: it exports metrics by itself"
        )
    rates = _earlier_rates(spec, plan)
    _print_table(render(plan), sys.stderr)  # what each cell trains, and its share

    expect = _expectations(job, plan).of if spec.budget is not None else None

    # And seconds more.
    from raymrc.sweep.driver import Resources, run_study
    from raymrc.sweep.failures import FailureTerms
    from raymrc.sweep.progress import Progress
    from raymrc.tracking import MlflowRecorder

    with (
        MlflowRecorder(
            spec.tracking_uri,
            spec.experiment,
            records=ledger.records(),
            say=_say,
            may_win=job.plan.holds,
        ) as recorder,
        Progress() as show,
    ):
        outcome = run_study(
            plan,
            ledger,
            Trainer(
                "cuda" if spec.resources.gpus_per_host else "cpu",
                spec.prices.device_hour_usd,
                spec.resources.gpus_per_host or 1.0,
                frozenset(
                    cell.cell
                    for cell in plan.cells
                    if cell.placement is not None and cell.placement.checkpoints
                ),
                absolute(spec.storage),
            ).open_pool,
            job.data,
            folder=spec.folder,
            resources=Resources(
                spec.resources.cpus_per_host,
                spec.resources.gpus_per_host,
                spec.resources.max_hosts,
                spec.resources.lanes_per_host,
                together=spec.resources.same_machine,
                metrics_port=metrics_port,
            ),
            rates=rates,
            on_record=recorder.record,
            on_progress=show,
            budget=Budget.of(spec),
            expect=expect,
            failures=FailureTerms(spec.failures.retries, spec.failures.close_cell_after),
        )
    if recorder.behind:
        _say(
            "MLflow lacks some of this study's fold-runs, which are all in the ledger; when it can be "
            f"written again: raymrc sync {spec.path}"
        )
    return outcome


def _earlier_rates(spec: Spec, plan: Plan) -> dict[Cell, RatePrior]:
    """What the ledgers of `racing.warm_start` say of each cell's learning rates."""
    if spec.racing is None or plan.racing is None or not spec.racing.warm_start:
        return {}
    from raymrc.study.earlier import learn_rates
    from raymrc.study.ledger import Ledger

    records: list[Record] = []
    for place in spec.racing.warm_start:
        found = Ledger(place, write=False).records()
        if not found:
            raise spec.error(
                ("racing", "warm_start"),
                f"warm_start: {place} has no finished fold-run to learn from",
            )
        records += found
    learnt = {
        cell.cell: learn_rates(records, cell.cell, cell.total_parameters or 0, plan.racing)
        for cell in plan.cells
    }
    for cell, prior in learnt.items():
        if prior is None:
            _say(
                f"nothing is known of the learning rates of {cell.name}: warm_start has no such grid"
            )
    return {cell: prior for cell, prior in learnt.items() if prior is not None}


def _expectations(job: _Job, plan: Plan) -> Expectations:
    """What a plan's fold-runs are expected to cost."""
    from raymrc.study.forecast import Expectations

    workload = _workload(job.spec, plan, job.data.corpus, job.data.transfer)
    measured = _measured(job.spec, job.plan, workload, job.ledger.records())
    return Expectations(job.spec, plan, workload, measured)


def _tell(spec: Spec, outcome: StudyOutcome) -> None:
    """Where to look, and what is not done."""
    from raymrc.tracking import how_to_look

    _say(f"every run: {how_to_look(spec.tracking_uri, spec.experiment)}")
    if outcome.spared:
        _say(
            f"racing spared {outcome.spared} of {outcome.total} fold-runs; "
            "'raymrc report' has who was stopped and why"
        )
    for reason, times in outcome.reasons:
        _say(f"{times} of {outcome.total} fold-runs failed: {reason}")
    for cell, left in outcome.closed:
        _say(
            f"{cell}: closed, as {spec.failures.close_cell_after} configurations in a row failed "
            f"(failures.close_cell_after); {left} of its fold-runs were not begun"
        )
    if outcome.spent is not None:
        _say(_spending(spec, outcome.spent, outcome.device_seconds))
    if outcome.out_of_budget:
        _say(f"{outcome.out_of_budget}; give study {spec.study} more, and the same command goes on")
        raise typer.Exit(OUT_OF_BUDGET)
    if outcome.interrupted:
        _say(f"interrupted; the same command goes on where study {spec.study} stopped")
        raise typer.Exit(INTERRUPTED)
    if outcome.failed:
        _say("the rest is in the ledger; the same command tries the failed ones again")
        raise typer.Exit(SOMETHING_FAILED)


def _spending(spec: Spec, spent: Spent, device_seconds: float) -> str:
    """What a run has cost, and the study with it."""
    from raymrc.study.budget import Budget

    budget = Budget.of(spec)
    word = "GPU-seconds" if spec.resources.gpus_per_host else "core-seconds"
    in_all = f"{spent.device_seconds:,.0f}"
    usd = f" ({spent.usd:.4g} USD)" if spent.usd else ""
    of = f", {budget.told(spent)}" if budget else ""
    return f"this run held devices for {device_seconds:,.0f} {word}, the study for {in_all}{usd} in all{of}"


def _print_final(records: Sequence[Record], summaries: Sequence[CellSummary]) -> None:
    """The final test's scores, where there are any."""
    from raymrc.study.final import final_scores, render_final

    scores = final_scores(records, [summary.cell for summary in summaries])
    if scores:
        validated = {s.cell: s.winner.strict.mean if s.winner else None for s in summaries}
        _print_table(render_final(scores, validated))


@app.command()
def report(study: Study, as_json: AsJson = False, changes: Changes = None) -> None:
    """Say who won, and at what cost, from the study's ledger."""
    from raymrc.study.final import final_scores
    from raymrc.study.plan import plan_study
    from raymrc.study.verdict import count_failing, render, to_json

    spec = _load(study, changes)
    records, unreadable = _read_ledger(spec)
    corpus = _corpus_at_hand(spec)
    transfer = _transfer_at_hand(spec, corpus)
    planned = plan_study(
        spec,
        corpus,
        _weights_at_hand(spec),
        transfer=transfer,
        initial_prompt=_initial_prompt_at_hand(spec),
        places=False,
    )
    summaries = _summarise(spec, planned, records)
    conclusions = _conclude(spec, summaries, corpus, transfer)
    if as_json:
        finals = final_scores(records, [summary.cell for summary in summaries])
        _answer_json(
            to_json(summaries)
            | {
                "conclusions": conclusions.to_json(),
                "final_test": [score.to_json() for score in finals],
            }
        )
    else:
        _print_table(render(summaries))
        _print_conclusions(conclusions)
        _print_final(records, summaries)
        for summary in summaries:
            for reason, times in summary.reasons:
                _say(f"{summary.cell.name}: {times} fold-runs failed: {reason}")
        failing, most = count_failing(records), spec.failures.close_cell_after
        for summary, cell_plan in zip(summaries, planned.cells, strict=True):
            left = cell_plan.num_fold_runs - summary.num_done - summary.num_failed
            left -= summary.num_spared
            if most is not None and failing.get(summary.cell, 0) >= most and left > 0:
                _say(
                    f"{summary.cell.name}: closed, as {most} configurations in a row failed "
                    f"(failures.close_cell_after); {left} of its fold-runs were not begun, and "
                    "'raymrc run' tries it again"
                )
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def status(study: Study, as_json: AsJson = False, changes: Changes = None) -> None:
    """Say how far a study is, what it has spent, and when it will end."""
    from raymrc.study.budget import Budget, Journal
    from raymrc.study.forecast import forecast, shares_done
    from raymrc.study.prices import read_prices
    from raymrc.study.status import read_status, render

    spec = _load(study, changes)
    records, unreadable = _read_ledger(spec)
    planned, workload, _ = _plan_at_hand(spec)
    costs = None
    if workload is not None:
        measured, done = _measured(spec, planned, workload, records), shares_done(planned, records)
        costs = forecast(spec, planned, workload, measured, done, read_prices())
    entries = Journal(spec.storage).entries()
    found = read_status(planned, records, entries, Budget.of(spec), costs, time.time())
    if as_json:
        _answer_json(found.to_json())
    else:
        _print_table(render(found))
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def sync(study: Study, changes: Changes = None) -> None:
    """Write into MLflow what it lacks of the study's ledger."""
    from raymrc.study.plan import plan_study
    from raymrc.tracking import how_to_look
    from raymrc.tracking import sync as catch_up

    spec = _load(study, changes)
    records, unreadable = _read_ledger(spec)
    if not records:
        _say(f"the ledger in {spec.storage} holds no fold-run yet; 'raymrc run' comes first")
        raise typer.Exit(MUST_CHANGE if unreadable else DONE)
    planned = plan_study(spec, _corpus_at_hand(spec), places=False)
    written = catch_up(records, spec.tracking_uri, spec.experiment, planned.holds)
    _say(f"{written} MLflow runs written or changed, of {len(records)} fold-runs in the ledger")
    _say(how_to_look(spec.tracking_uri, spec.experiment))
    if unreadable:
        raise typer.Exit(MUST_CHANGE)


@app.command()
def simulate(
    source: Annotated[
        Path, typer.Argument(help="A study's YAML file, or a storage with a ledger.")
    ],
    as_json: AsJson = False,
    orders: Annotated[
        int, typer.Option(help="Replay each cell with the folds in so many orders.")
    ] = 20,
    slots: Annotated[int, typer.Option(help="Fold-runs at a time.")] = 8,
) -> None:
    """Replay a ledger's full grids: what racing would have saved, and whom it would have chosen."""
    from raymrc.errors import LedgerError
    from raymrc.study.ledger import Ledger
    from raymrc.study.simulate import read_tables, render, replay_cells

    spec = _load(source, None) if source.is_file() else None
    ledger = Ledger(spec.storage if spec else str(source), write=False)
    records, problems = ledger.read_all()
    for problem in problems:
        _say(problem)
    tables = read_tables(records, spec.num_folds if spec else None)
    if not tables:
        raise LedgerError(
            f"{source}: no cell has two configurations with all folds done; nothing can be raced"
        )
    outcomes = replay_cells(tables, orders, slots)
    if as_json:
        _answer_json(outcomes)
    else:
        _print_table(render(outcomes))
    if problems:
        raise typer.Exit(MUST_CHANGE)


def _load(study: Path, changes: list[str] | None) -> Spec:
    """The study, its warnings said."""
    from raymrc.study.spec import load_spec

    spec = load_spec(study, changes or ())
    for warning in spec.warnings:
        _say(f"warning: {warning}")
    return spec


def _summarise(spec: Spec, planned: Plan, records: Sequence[Record]) -> tuple[CellSummary, ...]:
    """The cells of the plan, as the ledger has them."""
    from raymrc.study.plan import fold_run
    from raymrc.study.verdict import summarise

    cells = [cell_plan.cell for cell_plan in planned.cells]
    records = [r for r in records if planned.holds(r.fold_run.configuration)]
    same = None
    if planned.fingerprints is not None:
        # The ledger may also hold results on other notes or weights, from before a change.
        same = [
            fold_run(r.fold_run.configuration, r.fold_run.fold, planned.fingerprints)
            for r in records
        ]
    return summarise(records, spec.num_folds, cells, same)


def _conclude(
    spec: Spec,
    summaries: Sequence[CellSummary],
    corpus: Corpus | None,
    transfer: Mapping[str, Corpus] | None,
) -> Conclusions:
    """Notes of a patient or article count as one where the notes are at hand, and by themselves where not."""
    from raymrc.study.conclusions import conclude

    sites = {"": corpus} if corpus is not None else {}
    groups = {
        name: {note.id: note.group or note.id for note in of_site.notes}
        for name, of_site in (sites | dict(transfer or {})).items()
    }
    return conclude(summaries, spec.equivalence_points / 100, groups)


def _print_conclusions(conclusions: Conclusions) -> None:
    from raymrc.study.conclusions import render

    if conclusions.winners:
        _print_table(render(conclusions))


def _read_ledger(spec: Spec) -> tuple[tuple[Record, ...], bool]:
    """The records that can be read, and whether there are others; those are said."""
    from raymrc.study.ledger import Ledger

    records, problems = Ledger(spec.storage, write=False).read_all()
    for problem in problems:
        _say(problem)
    return records, bool(problems)


def _corpus_at_hand(spec: Spec) -> Corpus | None:
    """The notes; None where this machine does not have them, which a plan can do without."""
    from raymrc.study.plan import read_study_corpus

    path = spec.corpus.path
    return read_study_corpus(spec) if path is None or Path(path).exists() else None


def _transfer_at_hand(spec: Spec, corpus: Corpus | None) -> dict[str, Corpus] | None:
    """The notes of other sites; None where this machine does not have all of them."""
    from raymrc.study.plan import read_transfer

    paths = [described.path for described in spec.transfer]
    if corpus is None or not all(path is None or Path(path).exists() for path in paths):
        return None
    return read_transfer(spec, corpus)


def _initial_prompt_at_hand(spec: Spec) -> Adapter | None:
    """What the study's initial prompt was trained for; None where this machine does not have it."""
    from raymrc.study.plan import read_initial_prompt

    place = spec.initial_prompt
    return read_initial_prompt(spec) if place is not None and Path(place).exists() else None


def _ledger_at_hand(spec: Spec) -> Ledger | None:
    """The ledger, where it holds something."""
    from raymrc.study.ledger import Ledger

    ledger = Ledger(spec.storage, write=False)
    return ledger if ledger.keys() else None


def _weights_at_hand(spec: Spec) -> dict[str, str] | None:
    """Fingerprints of all backbones' weights; None where one is not here."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whoever only looks, fetches nothing

    from raymrc.errors import BackboneError
    from raymrc.model.backbones import find, weights_fingerprint

    backbones = [entry.backbone for entry in spec.backbones]
    try:
        return {backbone.name: weights_fingerprint(find(backbone)) for backbone in backbones}
    except BackboneError:
        return None


def _tokenizers_at_hand(spec: Spec) -> dict[str, FileTokenizer | RoughTokenizer]:
    """By the backbone's source; a rough one where its own is not here."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from raymrc.errors import BackboneError
    from raymrc.model.backbones import find
    from raymrc.reading.light_tokenizers import read_tokenizer

    found = {}
    for entry in spec.backbones:
        try:
            folder = find(entry.backbone, weights=False)
        except BackboneError:
            folder = None
        found[entry.backbone.source] = read_tokenizer(folder)
    return found


def _print_table(table: RenderableType, stream: TextIO | None = None) -> None:
    """On stdout, where answers go, unless said otherwise."""
    from rich.console import Console

    stream = stream or sys.stdout
    # A table that goes into a file or a pipe is not cut to the 80 columns of a terminal.
    Console(file=stream, width=None if stream.isatty() else 160).print(table)
