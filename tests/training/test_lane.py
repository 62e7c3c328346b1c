"""A fold-run learns only from its training notes, and its record reports the run correctly.

The scored fold must not influence training or the choice of epoch. A leak would be silent:
it only makes scores better.
"""

from __future__ import annotations

import pickle
import random
import re
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raymrc.configuration import Configuration, FoldRun
from raymrc.corpora.note import Corpus, Note, Span
from raymrc.corpora.splits import make_folds, note_marks
from raymrc.errors import AdapterError, BackboneError, PromptError, TrainingError
from raymrc.ledger.record import Record
from raymrc.model.adapter_tensors import read_prompt
from raymrc.model.adapters import ADAPTER_FILE, read_adapter
from raymrc.model.loading import Loaded
from raymrc.model.strategies import STRATEGIES
from raymrc.reading.questions import build_questions
from raymrc.scoring.counts import Counts, pool
from raymrc.training.batching import StudyData
from raymrc.training.lane import Answers, Batch, Lane, Stage
from raymrc.training.meter import Meter
from raymrc.training.trainer import load_adapter
from tests.model.tiny import tiny_configuration, tiny_loaded
from tests.training.fold_runs import train_fold_run

LABELS = ("Drug", "ADE")
CPU = torch.device("cpu")


def make_notes(count: int = 24, seed: int = 0) -> tuple[Note, ...]:
    """Makes notes from the tiny vocabulary: 'aspirin' and 'warfarin' are drugs, 'rash' is an ADE."""
    draw = random.Random(seed)
    fillers = "the patient was given daily for pain after with no history".split()
    notes = []
    for number in range(count):
        words = draw.choices(fillers, k=draw.randint(4, 9))
        drug = draw.choice(["aspirin", "warfarin"])
        words.insert(draw.randrange(len(words)), drug)
        labelled = {drug: "Drug"}
        if number % 2:
            words.append("rash")
            labelled["rash"] = "ADE"
        spans, at = [], 0
        for word in words:
            if word in labelled:
                spans.append(Span(f"T{len(spans)}", labelled[word], ((at, at + len(word)),)))
            at += len(word) + 1
        notes.append(Note(f"n{number}", " ".join(words), tuple(spans), group=f"g{number}"))
    return tuple(notes)


def make_data(
    notes: tuple[Note, ...], num_folds: int = 3, *, validation_share: float = 0.2
) -> StudyData:
    corpus = Corpus(notes, LABELS)
    folds = make_folds(corpus, num_folds, seed=1, validation_share=validation_share)
    return StudyData(corpus, folds, build_questions(LABELS, {}))


def make_run(loaded: Loaded, strategy: str, fold: int = 0, **fields: object) -> FoldRun:
    small = {"epochs": 2, "batch_size": 4, "window": 20, "overlap": 4, **fields}
    configuration = tiny_configuration(loaded.backbone, strategy, **small)
    return FoldRun(configuration, fold, "corpus", "folds", "questions", "weights")


def comparable(record: Record) -> Record:
    """Clears the fields that differ between identical runs: times and memory."""
    return replace(
        record,
        epochs=tuple(replace(e, wall_seconds=0.0) for e in record.epochs),
        device_seconds=0.0,
        wall_seconds=0.0,
        training_seconds=0.0,
        evaluation_seconds=0.0,
        peak_bytes=0,
        cost_usd=0.0,
        started_at="",
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_memorise_its_training_notes(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    rate = 3e-2 if strategy == "frozen_soft_prompt" else 2e-3
    run = make_run(loaded, strategy, learning_rate=rate, head_learning_rate=1e-2, epochs=40)
    split = data.folds.split(0)
    # Validation uses the training notes, since the test is about memorising them.
    asked = SimpleNamespace(train=split.train, validation=split.train, scored=split.scored)
    folds = SimpleNamespace(split=lambda fold: asked)
    record = train_fold_run(run, StudyData(data.corpus, folds, data.questions), loaded)
    assert record.epochs[-1].loss < 0.1 * record.epochs[0].loss
    assert record.epochs[-1].validation_f1 > 0.95


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gold_of_the_scored_fold_changes_only_the_score(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    scored = set(data.folds.split(0).scored)
    bare = tuple(replace(n, spans=()) if n.id in scored else n for n in data.corpus.notes)
    blind = StudyData(Corpus(bare, LABELS), data.folds, data.questions)
    run = make_run(loaded, strategy)
    seen, unseen = train_fold_run(run, data, loaded), train_fold_run(run, blind, loaded)
    assert [e.loss for e in seen.epochs] == [e.loss for e in unseen.epochs]
    assert (seen.validation_f1, seen.best_epoch) == (unseen.validation_f1, unseen.best_epoch)


def test_the_best_validation_epoch_is_chosen_and_the_latest_one_wins_ties(
    loaded: Loaded, data: StudyData
) -> None:
    run = make_run(loaded, "fine_tune", learning_rate=5e-3, epochs=8)
    record = train_fold_run(run, data, loaded)
    best = max(e.validation_f1 for e in record.epochs)
    assert record.validation_f1 == best
    assert record.best_epoch == max(e.epoch for e in record.epochs if e.validation_f1 == best)
    # The record keeps the counts of each validation note in that epoch.
    assert set(record.validation) == set(data.folds.split(0).validation)
    assert pool(record.validation.values()).f1 == best


def test_scoring_uses_the_weights_of_the_chosen_epoch(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test ruins later epochs on purpose; the scores must not change."""
    run = make_run(loaded, "soft_prompt", learning_rate=5e-3, epochs=8)
    fine = train_fold_run(run, data, loaded)
    learnt = Lane.finish_step

    def learn_then_ruin(self: Lane, batch: Batch, loss: torch.Tensor) -> None:
        learnt(self, batch, loss)
        if len(self.epochs) >= fine.best_epoch:
            with torch.no_grad():
                for parameter in self.trained:
                    parameter.zero_()

    monkeypatch.setattr(Lane, "finish_step", learn_then_ruin)
    ruined = train_fold_run(run, data, loaded)
    if fine.best_epoch < 8:
        assert ruined.epochs[-1].validation_f1 < fine.validation_f1
    assert ruined.notes == fine.notes


def test_each_note_is_scored_once_across_folds_even_without_spans(
    loaded: Loaded, data: StudyData
) -> None:
    empty = Note("empty", "the patient was given daily", (), group="empty")
    blank = Note("blank", " ", (), group="blank")
    more = make_data((*data.corpus.notes, empty, blank))
    records = [
        train_fold_run(make_run(loaded, "frozen_soft_prompt", fold, epochs=1), more, loaded)
        for fold in range(3)
    ]
    scored = [note_id for record in records for note_id in record.notes]
    assert sorted(scored) == sorted(n.id for n in more.corpus.notes)
    gold = sum(len(n.spans) for n in more.corpus.notes)
    assert sum(r.strict.tp + r.strict.fn for r in records) == gold


def test_every_held_out_note_is_asked_every_question_even_without_answers(
    loaded: Loaded, data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()
    finish_answers = Lane.finish_answers

    def note_down(self: Lane, batch: Batch, answers: Answers) -> None:
        if self.stage is Stage.SCORING:
            asked.update((row.window.note_id, row.label) for row in batch.rows)
        finish_answers(self, batch, answers)

    monkeypatch.setattr(Lane, "finish_answers", note_down)
    train_fold_run(make_run(loaded, "soft_prompt", negative_rate=0.0, epochs=1), data, loaded)
    scored = data.folds.split(0).scored
    assert asked == {(note_id, label) for note_id in scored for label in range(len(LABELS))}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_repeating_a_fold_run_gives_the_same_record(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    run = make_run(loaded, strategy, dropout=0.1, negative_rate=0.5)
    first = train_fold_run(run, data, loaded)
    torch.rand(7)  # other code draws random numbers in between
    again = train_fold_run(run, data, loaded)
    assert comparable(first) == comparable(again)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_leaves_the_shared_backbone_unchanged(
    strategy: str, loaded: Loaded, data: StudyData
) -> None:
    before = {name: p.clone() for name, p in loaded.encoder.named_parameters()}
    train_fold_run(make_run(loaded, strategy, learning_rate=1e-1, epochs=1), data, loaded)
    for name, parameter in loaded.encoder.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad and parameter.grad is None, name


def test_a_nan_loss_error_names_the_step_and_the_learning_rate(
    loaded: Loaded, data: StudyData
) -> None:
    with pytest.raises(TrainingError, match=r"not a number at step \d+ .*learning rate 1e\+20"):
        train_fold_run(make_run(loaded, "fine_tune", learning_rate=1e20), data, loaded)


def test_an_error_about_a_long_question_names_the_largest_window_that_fits(
    loaded: Loaded, data: StudyData
) -> None:
    with pytest.raises(BackboneError, match=r"set window to \d+ or less"):
        train_fold_run(make_run(loaded, "hard_prompt", window=60), data, loaded)


def test_a_prompt_longer_than_512_is_refused(loaded: Loaded, data: StudyData) -> None:
    with pytest.raises(PromptError, match="1 to 512"):
        train_fold_run(make_run(loaded, "soft_prompt", prompt_length=513), data, loaded)


def test_a_record_reports_trained_parameters_and_resources_used(
    loaded: Loaded, data: StudyData
) -> None:
    run = make_run(loaded, "frozen_soft_prompt")
    record = train_fold_run(run, data, loaded, device_hour_usd=3600.0)
    lane = Lane(run, data, loaded, CPU, 1024)
    assert record.trained_parameters == sum(p.numel() for p in lane.trained)
    assert sum(count for _, count in record.trained) == record.trained_parameters
    assert {name.split(".")[0] for name, _ in record.trained} == {"prompt", "heads"}
    assert record.total_parameters == sum(p.numel() for p in lane.model.parameters())
    pieces = sum(row.length for row in lane.rows)
    assert record.tokens == 2 * pieces
    assert record.wall_seconds >= record.training_seconds + record.evaluation_seconds > 0
    assert 0 < record.device_seconds < 2 * record.wall_seconds * record.num_devices
    assert record.cost_usd == pytest.approx(record.device_seconds)
    assert record.flops > 2 * record.tokens * loaded.shape.num_layers * loaded.shape.hidden**2
    assert record.peak_bytes > 10 * 2**20
    assert record.key == run.key and record.versions["torch"] == version("torch")
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("form", ["none", "mlp", "lstm"])
def test_a_prompt_with_a_single_vector_can_be_trained(
    form: str, loaded: Loaded, data: StudyData
) -> None:
    run = make_run(loaded, "frozen_soft_prompt", prompt_length=1, reparametrisation=form, epochs=1)
    assert train_fold_run(run, data, loaded).status == "done"


def test_a_fraction_of_a_gpu_is_charged_as_that_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(CPU, gpus=0.25)
    meter.device = torch.device("cuda")  # the meter counts GPU time but runs nothing on a GPU
    now = time.perf_counter()
    meter.lap()
    monkeypatch.setattr(time, "perf_counter", lambda: now + 60.0)
    wall, held = meter.lap()
    assert wall == pytest.approx(60, abs=5)
    assert held == wall / 4 and meter.num_devices == 0.25


def test_a_span_that_tagging_cannot_express_counts_as_missed_and_unreachable(
    loaded: Loaded, data: StudyData
) -> None:
    scored = data.folds.split(0).scored[0]
    text = next(n.text for n in data.corpus.notes if n.id == scored)
    first = text.index(" ")
    nested = (
        Span("T1", "Drug", ((0, first),)),
        Span("T2", "Drug", ((0, text.index(" ", first + 1)),)),
    )
    notes = tuple(replace(n, spans=nested) if n.id == scored else n for n in data.corpus.notes)
    more = StudyData(Corpus(notes, LABELS), data.folds, data.questions)
    tagged = train_fold_run(make_run(loaded, "fine_tune", epochs=1), more, loaded)
    asked = train_fold_run(make_run(loaded, "soft_prompt", epochs=1), more, loaded)
    apart = train_fold_run(
        make_run(loaded, "soft_prompt", epochs=1, overlapping_answers="surest"), more, loaded
    )
    assert (tagged.unreachable, asked.unreachable, apart.unreachable) == (1, 0, 1)
    assert tagged.unreachable_reasons == apart.unreachable_reasons == {"same_label_overlap": 1}
    assert tagged.strict.tp + tagged.strict.fn == asked.strict.tp + asked.strict.fn


def test_a_record_counts_nested_and_discontinuous_spans_in_its_scored_notes(
    loaded: Loaded, data: StudyData
) -> None:
    notes = []
    for note in data.corpus.notes:
        words = [(m.start(), m.end()) for m in re.finditer(r"\S+", note.text)]
        nested = Span("N1", "ADE", (words[0],)), Span("N2", "Drug", (words[0],))
        apart = Span("D1", "ADE", (words[1], words[3]))
        notes.append(replace(note, spans=(*nested, apart)))
    more = StudyData(Corpus(tuple(notes), LABELS), data.folds, data.questions)
    run = make_run(loaded, "soft_prompt", learning_rate=2e-3, head_learning_rate=1e-2, epochs=8)
    record = train_fold_run(run, more, loaded)
    num_scored = len(data.folds.split(0).scored)
    gold = {name: c.tp + c.fn for name, c in record.subsets.items()}
    assert gold["nested"] == 2 * num_scored and gold["any"] == 3 * num_scored
    assert record.subsets["nested"].tp > 0, "nothing was learnt: try longer"
    assert record.subsets["discontinuous"] == Counts(0, 0, num_scored)
    assert all(note.subsets for note in record.notes.values())
    assert Record.from_json(record.to_json()) == record
    assert not train_fold_run(make_run(loaded, "fine_tune", epochs=1), data, loaded).subsets


def test_every_hyper_parameter_changes_the_ledger_key(loaded: Loaded) -> None:
    """A key that omits a hyper-parameter would return another configuration's result."""
    base = make_run(loaded, "soft_prompt")
    keys = {base.key}
    for field in Configuration.__dataclass_fields__:
        if field == "cell":
            continue
        value = getattr(base.configuration, field)
        if isinstance(value, str):
            other: object = value + "-other"
        elif isinstance(value, tuple):
            other = (*value[1:], 9.0)
        else:
            other = (value or 0) + 1
        changed = replace(base, configuration=replace(base.configuration, **{field: other}))
        keys.add(changed.key)
    assert len(keys) == len(Configuration.__dataclass_fields__)


def test_training_needs_no_checkpoint_files_after_loading(tmp_path: Path, data: StudyData) -> None:
    folder = tmp_path / "gone"
    kept = tiny_loaded("roberta", folder)
    for file in folder.iterdir():
        file.unlink()
    record = train_fold_run(make_run(kept, "hard_prompt", window=12, epochs=1), data, kept)
    assert record.epochs[0].loss > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_finished_lane_saves_its_best_epoch_as_an_adapter(
    strategy: str, loaded: Loaded, data: StudyData, tmp_path: Path
) -> None:
    kept: list[Lane] = []
    run = make_run(loaded, strategy, epochs=3, learning_rate=3e-2)
    record = train_fold_run(run, data, loaded, on_done=kept.append)
    (lane,) = kept
    assert lane.stage is Stage.DONE
    assert lane.best_epoch == record.best_epoch
    model, adapter = load_adapter(lane.write_adapter(tmp_path), loaded)
    assert adapter.labels == LABELS
    assert model.configuration == run.configuration
    state = model.trained_state()
    assert lane.best_state is not None
    assert state.keys() == lane.best_state.keys()
    assert all(torch.equal(state[name], lane.best_state[name]) for name in state)


def test_an_adapter_with_the_wrong_tensors_is_refused(
    loaded: Loaded, data: StudyData, tmp_path: Path
) -> None:
    run = make_run(loaded, "frozen_soft_prompt", epochs=1)
    train_fold_run(run, data, loaded, on_done=lambda lane: lane.write_adapter(tmp_path))
    path = tmp_path / ADAPTER_FILE
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file({"prompt.table": torch.zeros(2, 3)}, path, metadata)
    with pytest.raises(AdapterError, match="does not fit this configuration"):
        load_adapter(path, loaded)


@pytest.mark.parametrize("strategy", ["soft_prompt", "frozen_soft_prompt"])
def test_a_lane_can_start_from_the_prompt_of_another_study(
    strategy: str, loaded: Loaded, data: StudyData, tmp_path: Path
) -> None:
    run = make_run(loaded, "frozen_soft_prompt", epochs=1)
    kept: list[Lane] = []
    train_fold_run(run, data, loaded, on_done=kept.append)
    place = kept[0].write_adapter(tmp_path)
    given = replace(data, initial_prompt=read_prompt(read_adapter(place)))
    given = pickle.loads(pickle.dumps(given))  # a host receives it pickled
    split = data.folds.split(0)
    learnt = {*split.train, *split.validation}
    marks = read_adapter(place).notes
    assert all(bool(note_marks(n) & marks) == (n.id in learnt) for n in data.corpus.notes)
    started = make_run(loaded, strategy, epochs=1, prompt_initialisation="adapter")
    lane = Lane(started, given, loaded, CPU, 1024)
    assert lane.model.prompt is not None and kept[0].model.prompt is not None
    assert torch.equal(lane.model.prompt.table.detach(), kept[0].model.prompt.table.detach())
    assert train_fold_run(started, given, loaded).status == "done"
    # A lane that starts from the prompt inherits its list of seen notes, even in a study of other notes.
    earlier = replace(given.initial_prompt, notes=frozenset({"0123456789abcdef"}))
    for way, inherits in (("adapter", True), ("random", False)):
        trial = make_run(loaded, strategy, epochs=1, prompt_initialisation=way)
        done: list[Lane] = []
        train_fold_run(trial, replace(data, initial_prompt=earlier), loaded, on_done=done.append)
        seen = read_adapter(done[0].write_adapter(tmp_path / way)).notes
        assert seen == (marks | earlier.notes if inherits else marks)


def test_an_adapter_initialised_from_a_question_loads_without_the_question(
    loaded: Loaded, data: StudyData, tmp_path: Path
) -> None:
    run = make_run(loaded, "frozen_soft_prompt", epochs=1, prompt_initialisation="question")
    train_fold_run(run, data, loaded, on_done=lambda lane: lane.write_adapter(tmp_path))
    model, _ = load_adapter(tmp_path, loaded)
    assert model.configuration == run.configuration


def test_reading_a_prompt_from_an_adapter_without_one_fails(
    loaded: Loaded, data: StudyData, tmp_path: Path
) -> None:
    run = make_run(loaded, "fine_tune", epochs=1)
    train_fold_run(run, data, loaded, on_done=lambda lane: lane.write_adapter(tmp_path))
    with pytest.raises(AdapterError, match="has no soft prompt"):
        read_prompt(read_adapter(tmp_path))
