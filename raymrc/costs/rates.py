"""How long fold-runs will take, from arithmetic and what was measured before.

    Work -> parts, in seconds of a first guess -> multiplied by what measured fold-runs say -> Estimate

Each step of trust starts from the one before: a built-in guess for the kind of device, fold-runs of
other cells on the same hardware, a probe of the cell, the ledger's own fold-runs of the cell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raymrc.configuration import Configuration
from raymrc.costs.workload import FoldRunWork, Passes
from raymrc.model.shapes import Shape
from raymrc.model.strategies import STRATEGIES, count_parameters

# --- a first guess --------------------------------------------------------------------------------

PARTS = ("training", "evaluation", "steps", "passes", "updates", "rows", "opening")
"""What a fold-run's time is made of: operations, forward and backward; operations of passes that ask; what
each step and each pass costs beside; the optimiser, by trained numbers; rows, by collating and
reading answers; and opening a lane."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A kind of device, roughly.

    Args:
        flops: a second, that training and evaluation reach.
        layer_seconds: of one layer in a training step, beside its operations; a third of it in a pass
            that asks.
        update_seconds: of one trained number in a step.
        row_seconds: of one row.
        opening_seconds: of a lane, and for each of its trained numbers `update_seconds` four times.
        shares_passes: lanes side by side have these steps in common.
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
"""Of one core (AVX2 and newer, fp32), and of a GPU like an A100 (bf16), which `peak_flops` of a price table
replaces. The CPU's row was measured on two cores of an EPYC; the GPU's is arithmetic, at a third of
the peak."""

GPU_UTILISATION = 0.3
"""Share of a GPU's peak that passes of an encoder reach, roughly."""


@dataclass(frozen=True)
class Job:
    """A fold-run, as far as its cost goes.

    Args:
        num_labels, num_relations: that are asked for.
        lanes: that share its passes.
    """

    configuration: Configuration
    work: FoldRunWork
    shape: Shape
    num_labels: int
    num_relations: int = 0
    lanes: int = 1

    def parts(self, kind: str, peak_flops: float | None = None) -> np.ndarray:
        """Seconds of a device by the first guess, in the order of `PARTS`.

        Args:
            kind: of device, "cpu" or "gpu".
            peak_flops: of a GPU, where it is known.
        """
        guess = GUESSES[kind]
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
                steps * self._trained_parameters * guess.update_seconds,
                (self.work.training.rows + self.work.evaluation.rows) * guess.row_seconds,
                guess.opening_seconds + 4 * self._trained_parameters * guess.update_seconds,
            ]
        )

    @cached_property
    def _trained_parameters(self) -> int:
        return count_parameters(
            self.configuration, self.shape, self.num_labels, self.num_relations
        ).trained


# --- what was measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A finished fold-run and what it cost.

    Args:
        hardware: as `training.meter.hardware` says it.
        kind: of device, "cpu" or "gpu".
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
        """What has to be equal for it to be of the same cell, whatever the notes."""
        cell = self.job.configuration.cell
        return cell.backbone.name, cell.strategy

    def to_values(self) -> dict[str, Any]:
        """Plain values, for `probe.json`."""
        return {
            "job": {
                "configuration": asdict(self.job.configuration),
                "work": asdict(self.job.work),
                "shape": asdict(self.job.shape),
                "num_labels": self.job.num_labels,
                "num_relations": self.job.num_relations,
                "lanes": self.job.lanes,
            },
            "hardware": self.hardware,
            "kind": self.kind,
            "device_seconds": self.device_seconds,
            "peak_bytes": self.peak_bytes,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Measured:
        """Of a probe. Raises KeyError, TypeError or ValueError where they are not such values."""
        job = dict(values["job"])
        job["configuration"] = Configuration.from_values(job["configuration"])
        job["work"] = FoldRunWork(
            **{name: Passes(**passes) for name, passes in job["work"].items()}
        )
        job["shape"] = Shape(**job["shape"])
        return cls(**{**values, "job": Job(**job)}, source="probe")


# --- fitting --------------------------------------------------------------------------------------

SPREADS = {"guess": 0.85, "others": 0.3, "probe": 0.12, "ledger": 0.08}
"""Standard deviation of the logarithm by where rates come from, until enough was measured to say: a guess is
within four times, either way; fold-runs of another cell, 60 %; a probe, 20 %; the ledger, 14 %."""

RIDGE = 0.02
"""What keeps parts near where they were, against the squares of relative errors."""


@dataclass(frozen=True)
class Rates:
    """By how much a cell's parts differ from the first guess.

    Args:
        multipliers: in the order of `PARTS`, none negative.
        spread: standard deviation of the logarithm of what is predicted.
        source: a key of `SPREADS`.
        measured: fold-runs that it was fitted to.
        hardware: where they were measured; "" for a guess.
    """

    multipliers: np.ndarray
    spread: float
    source: str = "guess"
    measured: int = 0
    hardware: str = ""

    def seconds(self, parts: np.ndarray) -> float:
        return float(self.multipliers @ parts)


def fit_rates(
    like: tuple[str, str], measured: Iterable[Measured], kind: str, peak_flops: float | None = None
) -> Rates:
    """The rates of a cell.

    Args:
        like: its backbone's name and its strategy; see `Measured.like`.
        measured: of any cell, all on one hardware.
        kind: of device.
        peak_flops: see `Job.parts`.
    """
    everything = [m for m in measured if m.kind == kind and m.device_seconds > 0]
    rates = Rates(np.ones(len(PARTS)), SPREADS["guess"])
    own = [m for m in everything if m.like == like]
    stages = {
        "others": [m for m in everything if m.like != like],
        "probe": [m for m in own if m.source == "probe"],
        "ledger": [m for m in own if m.source == "ledger"],
    }
    for source, found in stages.items():
        if found:
            parts = np.stack([m.job.parts(kind, peak_flops) for m in found])
            seconds = np.array([m.device_seconds for m in found])
            multipliers = _fit(rates.multipliers, parts, seconds)
            spread = _spread(rates.multipliers, parts, seconds, SPREADS[source])
            rates = Rates(multipliers, spread, source, len(found), found[0].hardware)
    return rates


def _fit(start: np.ndarray, parts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Non-negative least squares of relative errors, from `start` scaled to the median.

    Shapes:
        start: (parts,), parts: (fold-runs, parts), seconds: (fold-runs,)
    """
    from scipy.optimize import nnls  # a third of a second, and only where something was measured

    scaled = start * float(np.median(seconds / (parts @ start)))
    shares = parts * scaled / seconds[:, None]
    ridge = math.sqrt(RIDGE)
    left = np.concatenate([shares, ridge * np.eye(len(start))])
    right = np.concatenate([np.ones(len(seconds)), np.full(len(start), ridge)])
    factors, _ = nnls(left, right)
    return scaled * np.asarray(factors)


def _spread(start: np.ndarray, parts: np.ndarray, seconds: np.ndarray, usual: float) -> float:
    """Of fold-runs predicted from the others; drawn to `usual` where there are few."""
    number = len(seconds)
    errors = []
    for at in range(number) if number > 1 else ():
        others = np.arange(number) != at
        multipliers = _fit(start, parts[others], seconds[others])
        errors.append(math.log(seconds[at] / float(parts[at] @ multipliers)))
    squares = sum(error * error for error in errors)
    return math.sqrt((squares + 4 * usual**2) / (len(errors) + 4))


def choose_hardware(measured: Sequence[Measured], kind: str, named: str = "") -> list[Measured]:
    """The fold-runs of one hardware: of the ledger before a probe's, where most were measured.

    Args:
        named: only hardware with this name in it, such as "A10G"; "": any of this kind.
    """
    found = [m for m in measured if m.kind == kind and named in m.hardware]
    for source in ("ledger", "probe"):
        of_source = [m.hardware for m in found if m.source == source]
        if of_source:
            chosen = statistics.mode(of_source)
            return [m for m in found if m.hardware == chosen]
    return []
