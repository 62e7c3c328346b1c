"""F1 of the four strategies beside plain Hugging Face token and pair classification.

    python -m benchmarks.accuracy [studies/phee/concepts.yaml] [--set key=value ...] [--seeds 13 14 15]

For each seed, runs the study (finished fold-runs are read from its ledger), then the peer: one
`AutoModelForTokenClassification` with flat BIO tags, trained by `transformers.Trainer`; for relations
`AutoModelForSequenceClassification` of pairs with typed marks; end to end one after the other. Both sides
share backbone, notes, folds, windows, batch size, duration and the strict scoring rule. The peer has
`fine_tune`'s learning rates and duration; the best of its parts of training and its rate are chosen on the
same validation notes. End to end, its two models share the steps or device-seconds of our one.

For equal steps set `training.duration` to steps, for equal cost to device-seconds, and
`resources.cpus_per_host=1`: both sides then have one core. Prints one JSON line per strategy and saves the
peer's fold-runs beside the ledger.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Options, json_line
from raymrc.analysis.summary import summarise
from raymrc.configuration import RESULT_FORMAT, Configuration, hash_values
from raymrc.corpora.note import Corpus, Note, Span
from raymrc.corpora.splits import Folds
from raymrc.ledger.ledger import Ledger
from raymrc.model.backbones import find_backbone
from raymrc.planning.loaded import LoadedStudy
from raymrc.planning.plan import plan_study
from raymrc.reading.answers import assemble, decode_tags
from raymrc.reading.relations import Mention, assemble_relations, find_asked, mentions_of
from raymrc.reading.rows import Row, RowBuilder, RowForm
from raymrc.reading.windows import Window, cut_windows, read_pieces
from raymrc.scoring.counts import Counts, pool
from raymrc.scoring.n2c2_2018 import score_note, score_relations
from raymrc.study.load import load_spec
from raymrc.study.notes import build_study_folds, read_study_corpus
from raymrc.study.space import Fixed
from raymrc.study.spec import Spec

IGNORED = -100

NEVER = 10**9
"""More steps than any run has."""


@dataclass(frozen=True)
class PeerRun:
    """One fold of the peer at one learning rate.

    Args:
        core_seconds: of the whole fold-run.
    """

    learning_rate: float
    fold: int
    strict: tuple[int, int, int]
    validation_f1: float
    core_seconds: float
    steps: int


def flat_tags(note: Note, window: Window, labels: Sequence[str]) -> list[int]:
    """One BIO tag per word for all labels, at its first piece, as `run_ner.py` of transformers does; of
    overlapping spans the longest is kept."""
    tags = [IGNORED] * len(window.piece_ids)
    for start in window.word_starts:
        tags[start] = 0
    starts = {window.offsets[i][0]: i for i in window.word_starts}
    ends = {e: i for i, (_, e) in enumerate(window.offsets)}
    for span in sorted(note.spans, key=lambda s: (s.start - s.end, s.start)):
        first, last = starts.get(span.start), ends.get(span.end)
        words = [] if first is None or last is None else range(first, last + 1)
        words = [i for i in words if tags[i] != IGNORED]
        if not words or any(tags[i] for i in words):
            continue
        label = labels.index(span.label)
        for i in words:
            tags[i] = 2 + 2 * label
        tags[words[0]] = 1 + 2 * label
    return tags


def spans_of(
    tags: np.ndarray, windows: Sequence[Window], note: Note, labels: Sequence[str]
) -> tuple[Span, ...]:
    """Convert predicted flat tags of a note's windows to spans; the first piece of a word decides for it, as
    with `aggregation_strategy="first"`."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for window, row in zip(windows, tags, strict=True):
        row = row[: len(window.piece_ids)]
        spans = []
        for label in range(len(labels)):
            label_tags = np.where(row == 1 + 2 * label, 1, np.where(row == 2 + 2 * label, 2, 0))
            spans += [(label, first, last) for first, last in decode_tags(label_tags, window)]
        found[window.index] = spans
    return assemble(note, windows, found, labels)


def train_peer(
    corpus: Corpus,
    folds: Folds,
    configuration: Configuration,
    fold: int,
    threads: int,
) -> PeerRun:
    """Train what a Hugging Face user would write: Trainer, dynamic padding, best epoch by validation F1.

    Concepts have one model, relations between given mentions one, and end to end both: the second
    model learns pairs of gold mentions and classifies pairs of predicted ones.
    """
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    began = time.process_time()
    tokenizer: Any = AutoTokenizer.from_pretrained(find_backbone(configuration.cell.backbone))
    split = folds.split(fold)
    notes = {note.id: note for note in corpus.notes}
    parts = [[notes[i] for i in ids] for ids in (split.train, split.validation, split.scored)]
    seed = int(hash_values([configuration.seed, fold])[:8], 16)
    random.seed(seed)
    torch.manual_seed(seed)  # Trainer sets its seed only after the head is drawn
    task = configuration.cell.task
    spans = {note.id: note.spans for note in corpus.notes}
    fits: list[Fit] = []
    if task == "end_to_end" and configuration.duration is not None:
        half = str(configuration.limit.times(0.5))
        configuration = replace(configuration, duration=half)
    with tempfile.TemporaryDirectory() as scratch:
        if task != "relations":
            tagger = Tagger(corpus.labels, tokenizer, configuration)
            fits.append(tagger.fit(parts[0], parts[1], seed, scratch))
            for part in parts[1:]:
                spans |= tagger.find(part)
            result = Tagger.count(spans, parts[2])
        if task != "concepts":
            pairs = PairClassifier(corpus, tokenizer, configuration)
            fits.append(pairs.fit(parts[0], parts[1], spans, seed, scratch))
            result = pairs.count(parts[2], spans)
    return PeerRun(
        configuration.learning_rate,
        fold,
        (result.tp, result.fp, result.fn),
        fits[-1].validation_f1,
        time.process_time() - began,
        sum(fit.steps for fit in fits),
    )


@dataclass(frozen=True)
class Fit:
    """A trained model and what its training took.

    Args:
        trainer: holds the model of the best part of training.
    """

    trainer: Any
    validation_f1: float
    steps: int


def fit(
    model: Any,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    collator: Any,
    f1_of: Callable[[np.ndarray], float],
    configuration: Configuration,
    seed: int,
    scratch: str,
) -> Fit:
    """The Trainer with the model of its best part of training. The rate falls to zero over the duration."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    c, best = configuration, [0.0]

    def metrics(prediction: Any) -> dict[str, float]:
        best.append(f1_of(prediction.predictions))
        return {"f1": best[-1]}

    steps = c.limit.steps(math.ceil(len(train) / c.batch_size))

    class Progress(TrainerCallback):  # type: ignore[misc]
        """Lowers the rate and ends parts by the core-seconds of steps, where device-seconds decide."""

        began = seconds = 0.0
        parts = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if steps is None:
                for group in more["optimizer"].param_groups:
                    group["lr"] = c.learning_rate * max(0.0, 1 - self.seconds / c.limit.amount)
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.seconds += time.process_time() - self.began
            if steps is None and self.seconds >= (self.parts + 1) / c.epochs * c.limit.amount:
                self.parts += 1
                control.should_evaluate = control.should_save = True
                control.should_training_stop = self.parts == c.epochs

    layers = c.cell.backbone.layers
    if layers is not None:
        model.base_model.encoder.layer = model.base_model.encoder.layer[:layers]
    every = NEVER if steps is None else max(1, int(steps) // c.epochs)
    trainer: Any = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=scratch,
            learning_rate=c.learning_rate,
            lr_scheduler_type="constant" if steps is None else "linear",
            max_steps=NEVER if steps is None else int(steps),
            per_device_train_batch_size=c.batch_size,
            per_device_eval_batch_size=64,
            weight_decay=c.weight_decay,
            max_grad_norm=c.clip_norm,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            seed=seed % 2**31,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        compute_metrics=metrics,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.compute_metrics = None
    return Fit(trainer, max(best), trainer.state.global_step)


@dataclass
class Tagger:
    """`AutoModelForTokenClassification` with flat BIO tags."""

    labels: Sequence[str]
    tokenizer: Any
    configuration: Configuration
    trainer: Any = None

    def fit(
        self, train: Sequence[Note], validation: Sequence[Note], seed: int, scratch: str
    ) -> Fit:
        from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

        model = AutoModelForTokenClassification.from_pretrained(
            find_backbone(self.configuration.cell.backbone), num_labels=1 + 2 * len(self.labels)
        )

        def f1(logits: np.ndarray) -> float:
            return self.count(self._read(logits, validation), validation).f1

        fitted = fit(
            model, self._items(train), self._items(validation),
            DataCollatorForTokenClassification(self.tokenizer), f1, self.configuration, seed, scratch,
        )  # fmt: skip
        self.trainer = fitted.trainer
        return fitted

    def find(self, notes: Sequence[Note]) -> dict[str, tuple[Span, ...]]:
        """Note id -> spans."""
        return self._read(self.trainer.predict(self._items(notes)).predictions, notes)

    @staticmethod
    def count(spans: Mapping[str, tuple[Span, ...]], notes: Sequence[Note]) -> Counts:
        return pool(
            pool(score_note(note.spans, spans[note.id], "strict").values()) for note in notes
        )

    def _windows(self, note: Note) -> list[Window]:
        c = self.configuration
        return cut_windows(read_pieces(note, self.tokenizer), c.window, c.overlap)

    def _items(self, notes: Sequence[Note]) -> list[dict[str, Any]]:
        items = []
        for note in notes:
            for window in self._windows(note):
                ids = [self.tokenizer.cls_token_id, *window.piece_ids, self.tokenizer.sep_token_id]
                tags = [IGNORED, *flat_tags(note, window, self.labels), IGNORED]
                items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": tags})
        return items

    def _read(self, logits: np.ndarray, notes: Sequence[Note]) -> dict[str, tuple[Span, ...]]:
        tags, at, found = logits.argmax(-1)[:, 1:], 0, {}
        for note in notes:
            windows = self._windows(note)
            found[note.id] = spans_of(tags[at : at + len(windows)], windows, note, self.labels)
            at += len(windows)
        return found


@dataclass
class PairClassifier:
    """`AutoModelForSequenceClassification` of pairs with typed marks, in the same contexts as ours."""

    corpus: Corpus
    tokenizer: Any
    configuration: Configuration
    trainer: Any = None

    def __post_init__(self) -> None:
        c = self.configuration
        form = RowForm(c.window, context_sentences=c.context_sentences or 0, tags=True)
        asked = find_asked("relations", self.corpus)
        self.builder = RowBuilder(self.tokenizer, form, asked, {})

    def fit(
        self,
        train: Sequence[Note],
        validation: Sequence[Note],
        spans: Mapping[str, tuple[Span, ...]],
        seed: int,
        scratch: str,
    ) -> Fit:
        """
        Args:
            spans: each note's spans that form pairs; gold spans for training notes.
        """
        from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

        model = AutoModelForSequenceClassification.from_pretrained(
            find_backbone(self.configuration.cell.backbone),
            num_labels=1 + len(self.builder.asked.relations),
        )
        rows = self._rows(validation, spans)

        def f1(logits: np.ndarray) -> float:
            return self._count(logits, rows, validation).f1

        fitted = fit(
            model, self._items(self._rows(train, spans)), self._items(rows),
            DataCollatorWithPadding(self.tokenizer), f1, self.configuration, seed, scratch,
        )  # fmt: skip
        self.trainer = fitted.trainer
        return fitted

    def count(self, notes: Sequence[Note], spans: Mapping[str, tuple[Span, ...]]) -> Counts:
        rows = self._rows(notes, spans)
        return self._count(self.trainer.predict(self._items(rows)).predictions, rows, notes)

    def _rows(self, notes: Sequence[Note], spans: Mapping[str, tuple[Span, ...]]) -> list[Row]:
        rows: list[Row] = []
        for note in notes:
            pieces = read_pieces(note, self.tokenizer)
            contexts = self.builder.contexts(note, pieces, mentions_of(spans[note.id]))
            rows += self.builder.relation_rows(note, contexts)
        return rows

    @staticmethod
    def _items(rows: Sequence[Row]) -> list[dict[str, Any]]:
        return [
            {
                "input_ids": row.pieces.ids.tolist(),
                "attention_mask": [1] * row.length,
                "labels": row.kind,
            }
            for row in rows
        ]

    def _count(self, logits: np.ndarray, rows: Sequence[Row], notes: Sequence[Note]) -> Counts:
        found: dict[str, list[tuple[int, Mention, Mention]]] = {note.id: [] for note in notes}
        for row, kind in zip(rows, logits.argmax(-1).tolist(), strict=True):
            assert row.context is not None and row.other is not None
            if kind:
                other = row.context.others[row.other][0]
                found[row.window.note_id].append((kind - 1, row.context.given, other))
        total = Counts()
        for note in notes:
            spans, relations = assemble_relations(found[note.id], self.builder.asked.relations)
            counts = score_relations(note.spans, note.relations, spans, relations, "strict")
            total += pool(counts.values())
        return total


def run_peer(
    spec: Spec,
    corpus: Corpus,
    folds: Folds,
    configurations: Sequence[Configuration],
    processes: int,
) -> dict[Configuration, list[PeerRun]]:
    """All folds of the peer for every configuration; finished ones are read from the file."""
    kept = spec.folder / "peer.jsonl"
    data = [RESULT_FORMAT, corpus.fingerprint, folds.fingerprint]
    wanted = {
        hash_values([*data, configuration.id, fold]): (configuration, fold)
        for configuration in configurations
        for fold in range(folds.count)
    }
    done: dict[str, PeerRun] = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            values = json.loads(line)
            key = values.pop("key")
            if key in wanted:  # others may be of a form that we no longer read
                done[key] = PeerRun(**{**values, "strict": tuple(values["strict"])})
    todo = {key: item for key, item in wanted.items() if key not in done}
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as workers:
        futures = {
            workers.submit(train_peer, corpus, folds, configuration, fold, threads): key
            for key, (configuration, fold) in todo.items()
        }
        for number, future in enumerate(as_completed(futures), 1):
            key = futures[future]
            done[key] = run = future.result()
            with kept.open("a") as out:
                out.write(json.dumps({"key": key, **asdict(run)}) + "\n")
            print(
                f"peer {number}/{len(futures)}: rate {run.learning_rate:g}, {run.steps} steps, "
                f"fold {run.fold}, F1 {100 * Counts(*run.strict).f1:.2f}, {run.core_seconds:.0f} s",
                file=sys.stderr,
            )
    runs: dict[Configuration, list[PeerRun]] = {}
    for key, (configuration, _) in wanted.items():
        runs.setdefault(configuration, []).append(done[key])
    return runs


@dataclass(frozen=True)
class Side:
    """One strategy, or the peer, under one seed: the configuration that validation chose, over the folds.

    Args:
        f1: strict micro F1 of each fold.
        steps, device_seconds: of a fold-run, means over folds; on a CPU core-seconds.
    """

    learning_rate: float
    f1: tuple[float, ...]
    steps: float
    device_seconds: float
    trained_share: float | None = None


def best_peer(runs: dict[Configuration, list[PeerRun]]) -> Side:
    """Choose the peer's rate as ours, by mean validation F1."""
    best = max(runs.values(), key=lambda folds: statistics.mean(r.validation_f1 for r in folds))
    return Side(
        best[0].learning_rate,
        tuple(Counts(*run.strict).f1 for run in best),
        statistics.mean(run.steps for run in best),
        statistics.mean(run.core_seconds for run in best),
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", default="studies/phee/concepts.yaml")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13], help="one study for each")
    parser.add_argument(
        "--quick", action="store_true", help="made-up notes, one strategy, four steps, two folds"
    )
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    return parser.parse_args()


QUICK = (
    "corpus={synthetic: {scheme: n2c2-2018, notes: 6}, labels: [Drug]}",
    "folds.count=2",
    "training={duration: 4 steps, epochs: 1, window: 64, overlap: 8, match_width: 64}",
    "backbones=[{name: minilm, layers: 1}]",
    "strategies={fine_tune: {learning_rate: 5.0e-4}}",
)


def main() -> None:
    arguments = read_arguments()
    options = Options("accuracy", arguments.quick, "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        changes = [*arguments.changes]
        if arguments.quick:
            changes += [*QUICK, f"storage={scratch}"]
        by_seed = [
            measure(Path(arguments.study), [*changes, f"training.seed={seed}"])
            for seed in arguments.seeds
        ]
        spec = load_spec(Path(arguments.study), changes)
        report(options, spec, arguments.seeds, by_seed)


def measure(study: Path, changes: Sequence[str]) -> dict[str, Side]:
    """Run the study and the peer under one seed: a side for each cell, and one for "peer"."""
    command = [sys.executable, "-m", "raymrc", "run", str(study)]
    subprocess.run([*command, *(f"--set={c}" for c in changes)], check=True, stdout=sys.stderr)

    spec = load_spec(study, changes)
    corpus = read_study_corpus(spec)
    folds = build_study_folds(spec, corpus)
    plan = plan_study(LoadedStudy(spec, corpus))
    tagging = [
        c
        for cell in plan.cells
        if cell.cell.strategy == "fine_tune"
        for c in cell.configurations or ()
    ]
    if not tagging:
        raise SystemExit(
            f"{study} has no fine_tune, whose learning rates and duration the peer takes"
        )
    # Ours has finished; each fold-run has one core on both sides.
    peer = best_peer(run_peer(spec, corpus, folds, tagging, min(2, os.cpu_count() or 1)))
    sides = {"peer": peer}
    records = Ledger(spec.storage, write=False).records()
    planned = [r for r in records if plan.holds(r.fold_run.configuration)]
    for summary in summarise(planned, spec.folds.count):
        winner = summary.winner
        if winner is not None:
            sides[f"{summary.cell.backbone.name}/{summary.cell.strategy}"] = Side(
                winner.configuration.learning_rate,
                winner.fold_f1,
                winner.steps / spec.folds.count,
                winner.device_seconds / spec.folds.count,
                winner.trained_share,
            )
    return sides


def report(
    options: Options, spec: Spec, seeds: Sequence[int], by_seed: Sequence[Mapping[str, Side]]
) -> None:
    """Print one line per strategy: means over seeds and folds."""
    duration = spec.training.given().get("duration")
    peers = [sides["peer"] for sides in by_seed]
    peer = statistics.mean(f for side in peers for f in side.f1)
    end = f"/{duration.value}" if isinstance(duration, Fixed) else ""
    drop_lines(options, f"{spec.study}/", end)
    for case in by_seed[0]:
        if case == "peer":
            continue
        ours = [sides[case] for sides in by_seed]
        f1 = statistics.mean(f for side in ours for f in side.f1)
        json_line(
            options,
            f"{spec.study}/{case}{end}",
            f1,
            peer,
            "strict micro F1, mean over seeds and folds",
            f1 / peer if peer else 0.0,
            round((peer - 0.005) / peer, 4) if peer else 0.0,
            **_beside("", ours),
            trained_share=_rounded(ours[0].trained_share),
            **_beside("peer_", peers),
            seeds=list(seeds),
            folds=spec.folds.count,
        )


def _beside(prefix: str, sides: Sequence[Side]) -> dict[str, Any]:
    """What stands beside the F1 of one side, over its seeds."""
    each = [f for side in sides for f in side.f1]
    mean = statistics.mean
    return {
        f"{prefix}sd": round(statistics.stdev(each), 4),
        f"{prefix}by_seed": [round(mean(side.f1), 4) for side in sides],
        f"{prefix}learning_rates": [side.learning_rate for side in sides],
        f"{prefix}steps": round(mean(side.steps for side in sides)),
        f"{prefix}device_seconds": round(mean(side.device_seconds for side in sides), 1),
    }


def drop_lines(options: Options, start: str, end: str) -> None:
    """Remove an earlier run of this study and duration from the results, and keep all other lines."""
    path = RESULTS / f"{options.name}.jsonl"
    if options.quick or not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    cases = [json.loads(line)["case"] for line in lines]
    path.write_text(
        "".join(
            line
            for line, case in zip(lines, cases, strict=True)
            if not (case.startswith(start) and case.endswith(end))
        )
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
