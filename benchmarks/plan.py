"""How accurate is a plan's forecast?

    python -m benchmarks.plan [--quick] [--corpus PHEE]

A case is a small study; cases differ in corpus, task, strategy, layers, windows and prompts. Each is trained
in a new process with one core, through the pools that hosts use, and predicted three times: from the built-in
guess, from a probe of the case (`raymrc plan --probe`), and from the records of all other cases (leave one
out). `ours` is |predicted - measured| / measured device-seconds by the probe, the best information before a
first run. The goal is 0.25 for each case and 0.10 for their median. Memory compares the process's peak with
the plan's `peak_memory_bytes`; its goal is 0.05.

--quick runs one short case to show that the code works.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, json_line, read_options, start
from raymrc.configuration import Backbone, FoldRun
from raymrc.costs.forecast import build_workload, forecast
from raymrc.costs.probe import choose_probed
from raymrc.costs.rates import Job, Measured
from raymrc.costs.workload import Workload
from raymrc.ledger.record import Record
from raymrc.model.backbones import find_backbone
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import Plan, plan_study
from raymrc.quantities import Estimate
from raymrc.reading.light_tokenizers import read_tokenizer
from raymrc.study.load import load_spec
from raymrc.study.notes import read_study_corpus
from raymrc.study.spec import Spec
from raymrc.training.batching import StudyData
from raymrc.training.probe import Probe, run_probes
from raymrc.training.trainer import Trainer

GOAL, MEDIAN_GOAL, MEMORY_GOAL = 0.25, 0.10, 0.05

PROBE_SECONDS, QUICK_PROBE_SECONDS = 15.0, 0.2
"""Per case, which has one cell."""

TEMPLATE = """\
study: case
task: {task}
corpus: {corpus}
folds: {{count: 2, validation_share: 0.2}}
backbones: [{{name: minilm, layers: {layers}}}]
strategies:
  {strategy}: {{learning_rate: {rate}{more}}}
training: {{epochs: {epochs}, batch_size: {batch}, window: {window}, overlap: 16, match_width: {width}}}
storage: nowhere
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A study of one cell and one configuration, in two folds.

    Args:
        corpus: "phee", or the scheme of synthetic notes.
        notes: number of notes.
        more: settings of the strategy, as YAML after a comma.
    """

    name: str
    corpus: str
    notes: int
    strategy: str
    layers: int = 6
    task: str = "concepts"
    epochs: int = 2
    batch: int = 8
    window: int = 128
    width: int = 256
    more: str = ""

    def spec(self, folder: Path, phee: Path | None) -> Spec:
        corpus = f"{{synthetic: {{scheme: {self.corpus}, notes: {self.notes}, seed: 5}}}}"
        if self.corpus == "phee":
            corpus = f"{{reader: phee, path: {phee}, subset: {{notes: {self.notes}}}}}"
        values = {name: getattr(self, name) for name in self.__slots__}
        text = TEMPLATE.format(
            **values | {"corpus": corpus, "more": f", {self.more}" if self.more else ""},
            rate="2.0e-2" if self.strategy == "frozen_soft_prompt" else "2.0e-4",
        )
        path = folder / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load_spec(path)


FROZEN = "frozen_soft_prompt"

CASES = (
    Case("tagging of short notes", "phee", 240, "fine_tune", epochs=3),
    Case("tagging of long notes, two layers", "n2c2-2018", 24, "fine_tune", layers=2, window=254),
    Case("tagging of social histories", "n2c2-2022", 60, "fine_tune", layers=4, batch=4),
    Case("questions in words, short notes", "phee", 80, "hard_prompt"),
    Case("questions in words, wide windows", "n2c2-2018", 6, "hard_prompt", layers=4, window=384),
    Case("trained prompts, short notes", "phee", 100, "soft_prompt", more="prompt_length: 8"),
    Case("trained prompts, long notes", "n2c2-2018", 6, "soft_prompt", layers=2, epochs=3, batch=16,
         more="prompt_length: 48"),
    Case("frozen, short notes", "phee", 120, FROZEN, more="prompt_length: 16"),
    Case("frozen, long prompts at the input", "n2c2-2018", 8, FROZEN, layers=4,
         more="prompt_length: 96, prompt_depth: input"),
    Case("frozen, late prompts", "n2c2-2018", 8, FROZEN, epochs=4,
         more="prompt_length: 32, first_layer: 3"),
    Case("frozen, a wide match head", "n2c2-2022", 24, FROZEN, layers=2, width=2048, window=62,
         batch=16, more="prompt_length: 32"),
    Case("relations, frozen", "n2c2-2018", 12, FROZEN, task="relations", more="prompt_length: 16"),
    Case("relations by pairs", "phee", 160, "fine_tune", task="relations", epochs=3),
    Case("end to end, questions in words", "phee", 50, "hard_prompt", layers=2, task="end_to_end"),
)  # fmt: skip

QUICK = (Case("tagging", "n2c2-2022", 6, "fine_tune", layers=1, epochs=1),)


@dataclass(frozen=True)
class Planned:
    """A case with its plan."""

    case: Case
    spec: Spec
    plan: Plan
    workload: Workload

    @classmethod
    def from_case(cls, case: Case, phee: Path | None) -> Planned:
        with tempfile.TemporaryDirectory() as folder:
            spec = case.spec(Path(folder), phee)
        corpus = read_study_corpus(spec)
        study = LoadedStudy(spec, corpus)
        plan = plan_study(study)
        tokenizers = {"minilm": read_tokenizer(find_backbone(Backbone("minilm", "minilm")))}
        return cls(case, spec, plan, build_workload(study, plan, tokenizers))

    def predicted(self, measured: Sequence[Measured]) -> tuple[Estimate, Estimate, str]:
        """Device-seconds, memory, and their source."""
        found = forecast(self.spec, self.plan, self.workload, measured)
        (cell,) = found.cells
        assert cell is not None
        return cell.device_seconds, cell.peak_memory_bytes, cell.rates.source


# --- one process ----------------------------------------------------------------------------------


def measure_here(planned: Planned) -> list[dict[str, Any]]:
    """Train all fold-runs of a case side by side as placed; values of `Measured`."""
    torch.set_num_threads(1)
    workload = planned.workload
    (cell,) = planned.plan.cells
    assert cell.configurations is not None and cell.placement is not None and cell.shape is not None
    data = StudyData(workload.corpus, workload.folds, workload.questions)
    pool = Trainer().open_pool(cell.cell.backbone, data)
    waiting = [
        FoldRun(configuration, fold, "", "", "", "")
        for configuration in cell.configurations
        for fold in range(planned.plan.folds)
    ]
    found = []
    while waiting or len(pool):
        while waiting and len(pool) < cell.placement.lanes:
            pool.open(waiting.pop())
        for event in pool.step():
            if isinstance(event.what, Exception):
                raise event.what
            if isinstance(event.what, Record):
                run = event.what.fold_run
                job = Job(
                    run.configuration, workload.of(run.configuration, run.fold), cell.shape,
                    len(workload.asked.labels), len(workload.asked.relations), cell.placement.lanes,
                )  # fmt: skip
                record = event.what
                found.append(
                    Measured(job, record.hardware, "cpu", record.device_seconds, record.peak_bytes)
                )
    return [run.to_values() for run in found]


def measure(number: int, options: Options) -> list[Measured]:
    """Run `measure_here` in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan", "--case", str(number)]
    command += ["--quick"] if options.quick else []
    command += ["--corpus", str(options.corpus)] if options.corpus else []
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    values = json.loads(run.stdout.splitlines()[-1])
    return [Measured(**{**vars(Measured.from_values(v)), "source": "ledger"}) for v in values]


def probe(planned: Planned, seconds: float) -> list[Measured]:
    (probed,), _ = choose_probed(planned.plan)
    workload = planned.workload
    return run_probes(
        [
            Probe(
                probed.configurations, probed.shape, probed.lanes, Trainer(), workload.corpus,
                dict(workload.questions), 1, seconds,
            )
        ],
        lambda sentence: print(sentence, file=sys.stderr),
    )  # fmt: skip


# --- all of them ----------------------------------------------------------------------------------


def main() -> int:
    if "--case" in sys.argv:
        at = sys.argv.index("--case")
        number = int(sys.argv.pop(at + 1))
        sys.argv.pop(at)
        options = read_options("plan", __doc__, reads_phee=True, devices=["cpu"])
        case = (QUICK if options.quick else CASES)[number]
        print(json.dumps(measure_here(Planned.from_case(case, options.corpus))))
        return 0
    options = read_options("plan", __doc__, reads_phee=True, devices=["cpu"])
    start(options)
    torch.set_num_threads(1)  # as in the measured processes
    chosen = [
        (number, Planned.from_case(case, options.corpus))
        for number, case in enumerate(QUICK if options.quick else CASES)
        if case.corpus != "phee" or options.corpus is not None
    ]
    # In turn, so that a machine that slows down affects both.
    seconds_of_probe = QUICK_PROBE_SECONDS if options.quick else PROBE_SECONDS
    pairs = [
        (probe(planned, seconds_of_probe), measure(number, options)) for number, planned in chosen
    ]
    probed, measured = zip(*pairs, strict=True)
    errors: dict[str, list[float]] = {"guess": [], "probe": [], "others": [], "memory": []}
    inside = 0
    for place, (_, planned) in enumerate(chosen):
        others = [run for at, found in enumerate(measured) if at != place for run in found]
        seconds = sum(run.device_seconds for run in measured[place])
        peak = max(run.peak_bytes for run in measured[place])
        guessed, _, _ = planned.predicted([])
        by_probe, memory, _ = planned.predicted(probed[place])
        by_others, _, source = planned.predicted(others)
        inside += by_probe.low <= seconds <= by_probe.high
        for name, value, truth in (
            ("guess", guessed.value, seconds),
            ("probe", by_probe.value, seconds),
            ("others", by_others.value, seconds),
            ("memory", memory.value, peak),
        ):
            errors[name].append(abs(value - truth) / truth)
        error = errors["probe"][-1]
        json_line(
            options, planned.case.name, error, None, "relative error of the predicted device-seconds",
            GOAL / max(error, 1e-4), GOAL,
            measured_seconds=round(seconds, 2),
            by_guess=round(guessed.value, 2),
            by_probe=[round(x, 2) for x in (by_probe.value, by_probe.low, by_probe.high)],
            by_other_cases=[round(x, 2) for x in (by_others.value, by_others.low, by_others.high)],
            other_cases=source,
            measured_bytes=peak, predicted_bytes=round(memory.value),
            predicted_bytes_interval=[round(memory.low), round(memory.high)],
        )  # fmt: skip
    for name, goal in (("probe", MEDIAN_GOAL), ("others", MEDIAN_GOAL), ("memory", MEMORY_GOAL)):
        middle = statistics.median(errors[name])
        json_line(
            options, f"median of {len(chosen)} studies, by {name}", middle, None, "relative error",
            goal / max(middle, 1e-4), goal,
            largest=round(max(errors[name]), 3),
            within_interval=inside if name == "probe" else None,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
