"""How long fold-runs take: operation counts, scaled by measured fold-runs.

    FoldRunWork -> seconds per part by a first guess -> times multipliers fitted to measurements -> Estimate

Fits start from a built-in guess for the kind of device and are refined in order of trust: by fold-runs of
other cells on the same hardware, by a probe of the cell, by the cell's own fold-runs in the ledger.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raymrc.configuration import Configuration
from raymrc.costs.workload import FoldRunWork, Passes
from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES, count_parameters

# --- a first guess --------------------------------------------------------------------------------

PARTS = ("training", "evaluation", "steps", "passes", "updates", "rows", "opening")
"""Parts of a fold-run's time: training operations; evaluation operations; overhead of each training step and
of each evaluation pass; the optimiser; collating rows and reading answers; opening a lane."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Rough speed of a kind of device.

    Args:
        flops: operations per second in training and evaluation.
        layer_seconds: overhead per layer and training step; an evaluation pass has a third of it.
        update_seconds: per trained number and step.
        row_seconds: per row.
        opening_seconds: per lane, plus four `update_seconds` per trained number.
        shares_passes: lanes side by side share the overhead of a step.
    """

    flops: float
    layer_seconds: float
    update_seconds: float
    row_seconds: float
    opening_seconds: float
    shares_passes: bool


GUESSES = {
    "cpu": Guess(7e10, 5e-4, 1.5e-9, 1e-4, 0.2, False),
    "gpu": Guess(1e14, 1e-3, 2e-11, 1e-4, 1.0, True),
}
"""One CPU core (AVX2 or newer, fp32), measured on two cores of an EPYC; and a GPU like an A100 (bf16),
computed at a third of its peak. A price table's `peak_flops` replaces the GPU's `flops`."""

GPU_UTILISATION = 0.3
"""Rough share of its peak that a GPU reaches in an encoder's passes."""


@dataclass(frozen=True)
class Job:
    """A fold-run and all that its cost depends on.

    Args:
        num_labels, num_relations: of the study's questions.
        lanes: number of lanes that share its passes.
    """

    configuration: Configuration
    work: FoldRunWork
    shape: Shape
    num_labels: int
    num_relations: int = 0
    lanes: int = 1

    def parts(self, kind: str, peak_flops: float | None = None) -> np.ndarray:
        """Device-seconds by the first guess, in the order of `PARTS`.

        Args:
            kind: "cpu" or "gpu".
            peak_flops: of the GPU; None if unknown.
        """
        guess = GUESSES[kind]
        num_trained = count_parameters(
            self.configuration, self.shape, self.num_labels, self.num_relations
        ).trained
        flops = guess.flops if peak_flops is None else GPU_UTILISATION * peak_flops
        trained, asked = self.work.flops(
            self.configuration, self.shape, self.num_labels, computed=kind
        )
        shared = 1.0
        if guess.shares_passes and not STRATEGIES[self.configuration.cell.strategy].trains_backbone:
            shared = 1.0 / self.lanes
        layers = (1 + self.shape.num_layers) * guess.layer_seconds * shared
        steps, passes = self.work.training.passes, self.work.evaluation.passes
        return np.array(
            [
                trained / flops,
                asked / flops,
                steps * layers,
                passes * layers / 3,
                steps * num_trained * guess.update_seconds,
                (self.work.training.rows + self.work.evaluation.rows) * guess.row_seconds,
                guess.opening_seconds + 4 * num_trained * guess.update_seconds,
            ]
        )


# --- measurements ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A finished fold-run and its cost.

    Args:
        hardware: description by `training.meter.hardware`.
        kind: "cpu" or "gpu".
        source: "ledger" or "probe".
    """

    job: Job
    hardware: str
    kind: str
    device_seconds: float
    peak_bytes: int
    source: str = "ledger"

    @property
    def like(self) -> tuple[str, str]:
        """Backbone and strategy: equal for fold-runs of the same cell, whatever the notes."""
        cell = self.job.configuration.cell
        return cell.backbone.name, cell.strategy

    def to_values(self) -> dict[str, Any]:
        """Plain values, for `probe.json`."""
        values = asdict(self)
        del values["source"]
        return values

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Measured:
        """Read what `to_values` wrote. Raises KeyError, TypeError or ValueError on other values."""
        job = dict(values["job"])
        job["configuration"] = Configuration.from_values(job["configuration"])
        job["work"] = FoldRunWork(
            **{name: Passes(**passes) for name, passes in job["work"].items()}
        )
        job["shape"] = Shape(**job["shape"])
        return cls(**{**values, "job": Job(**job)}, source="probe")


# --- fitting --------------------------------------------------------------------------------------

SPREADS = {"guess": 0.85, "others": 0.3, "probe": 0.12, "ledger": 0.08}
"""Standard deviation of log time by the source of the rates, used until enough was measured. A guess may be
off by a factor of four, other cells by 60 %, a probe by 20 %, the ledger by 14 %."""

TOKENIZER_SPREAD = 0.1
"""Standard deviation of log time that estimated piece counts add, where the backbone's tokenizer is
missing."""

RIDGE = 0.02
"""Penalty that keeps multipliers near their start, relative to squared relative errors."""

PRIOR_FOLD_RUNS = 4
"""Weight of the usual spread, in fold-runs."""


@dataclass(frozen=True)
class Rates:
    """Multipliers of the first guess for one cell.

    Args:
        multipliers: in the order of `PARTS`, none negative.
        spread: standard deviation of the logarithm of predicted times.
        source: a key of `SPREADS`.
        measured: number of fold-runs in the fit.
    """

    multipliers: np.ndarray
    spread: float
    source: str = "guess"
    measured: int = 0

    def seconds(self, job: Job, kind: str, peak_flops: float | None = None) -> float:
        """Device-seconds of a fold-run; see `Job.parts`. Training takes what a duration allows it."""
        parts, limit = job.parts(kind, peak_flops), job.configuration.limit
        if limit.unit != "device-seconds":
            return float(self.multipliers @ parts)
        trained, asked = job.work.training.rows, job.work.evaluation.rows
        rows = asked / max(1.0, trained + asked)
        return limit.amount + float(self.multipliers @ (parts * [0, 1, 0, 1, 0, rows, 1]))

    def total_spread(self, tokenizer: Any) -> float:
        """The spread, including that of the tokenizer's piece counts."""
        return math.hypot(self.spread, 0.0 if tokenizer.is_exact else TOKENIZER_SPREAD)


def fit_rates(
    like: tuple[str, str], measured: Iterable[Measured], kind: str, peak_flops: float | None = None
) -> Rates:
    """Fit the rates of a cell.

    Args:
        like: its backbone's name and its strategy; see `Measured.like`.
        measured: fold-runs of any cell, all on one hardware.
        kind, peak_flops: see `Job.parts`.
    """
    # Device-seconds do not tell what a step takes if they decided how many steps there were.
    usable = [
        m
        for m in measured
        if m.kind == kind
        and m.device_seconds > 0
        and m.job.configuration.limit.unit != "device-seconds"
    ]
    rates = Rates(np.ones(len(PARTS)), SPREADS["guess"])
    of_cell = [m for m in usable if m.like == like]
    stages = {
        "others": [m for m in usable if m.like != like],
        "probe": [m for m in of_cell if m.source == "probe"],
        "ledger": [m for m in of_cell if m.source == "ledger"],
    }
    for source, found in stages.items():
        if found:
            parts = np.stack([m.job.parts(kind, peak_flops) for m in found])
            seconds = np.array([m.device_seconds for m in found])
            multipliers = _fit(rates.multipliers, parts, seconds)
            spread = _spread(rates.multipliers, parts, seconds, SPREADS[source])
            rates = Rates(multipliers, spread, source, len(found))
    return rates


def _fit(start: np.ndarray, parts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Non-negative least squares on relative errors, starting from `start` scaled to the median.

    Shapes:
        start: (parts,), parts: (fold-runs, parts), seconds: (fold-runs,)
    """
    from scipy.optimize import nnls  # importing takes a third of a second

    scaled = start * float(np.median(seconds / (parts @ start)))
    shares = parts * scaled / seconds[:, None]
    ridge = math.sqrt(RIDGE)
    left = np.concatenate([shares, ridge * np.eye(len(start))])
    right = np.concatenate([np.ones(len(seconds)), np.full(len(start), ridge)])
    factors, _ = nnls(left, right)
    return scaled * np.asarray(factors)


def _spread(start: np.ndarray, parts: np.ndarray, seconds: np.ndarray, usual: float) -> float:
    """Leave-one-out prediction error, shrunk towards the usual spread when there are few fold-runs."""
    number = len(seconds)
    errors = []
    for left_out in range(number) if number > 1 else ():
        others = np.arange(number) != left_out
        multipliers = _fit(start, parts[others], seconds[others])
        errors.append(math.log(seconds[left_out] / float(parts[left_out] @ multipliers)))
    squares = sum(error * error for error in errors)
    return math.sqrt((squares + PRIOR_FOLD_RUNS * usual**2) / (len(errors) + PRIOR_FOLD_RUNS))


def choose_hardware(measured: Sequence[Measured], kind: str, named: str = "") -> list[Measured]:
    """Fold-runs on the hardware with most measurements; the ledger's count before a probe's.

    Args:
        named: part of the hardware's name, such as "A10G"; "" allows any of this kind.
    """
    candidates = [m for m in measured if m.kind == kind and named in m.hardware]
    for source in ("ledger", "probe"):
        hardware = [m.hardware for m in candidates if m.source == source]
        if hardware:
            chosen = statistics.mode(hardware)
            return [m for m in candidates if m.hardware == chosen]
    return []
