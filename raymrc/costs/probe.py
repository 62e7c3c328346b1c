"""Which cells `raymrc plan --probe` measures, and the file that keeps the measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymrc.configuration import Cell, Configuration
from raymrc.costs.rates import Measured
from raymrc.errors import LedgerError
from raymrc.ledger.storage import error_text, not_writable, open_files
from raymrc.planning.placement import PlacementMode
from raymrc.planning.plan import Plan, representatives

if TYPE_CHECKING:
    from raymrc.model.shapes import Shape


PROBE_FILE = "probe.json"

MAX_PROBE_SECONDS = 40.0
"""For the probes of all cells together, without the start of their processes."""


@dataclass(frozen=True)
class Probed:
    """A cell to probe: the first one of each backbone and strategy.

    Args:
        configurations: the cell's two extremes, which may be equal.
        lanes: number of lanes side by side.
    """

    cell: Cell
    configurations: tuple[Configuration, Configuration]
    shape: Shape
    lanes: int
    recomputes: bool


def choose_probed(plan: Plan) -> tuple[list[Probed], list[str]]:
    """The cells to probe, and a sentence for each cell that does not fit one device."""
    chosen: dict[tuple[str, str], Probed] = {}
    left_out = []
    for cell in plan.cells:
        like = (cell.cell.backbone.name, cell.cell.strategy)
        if like in chosen or cell.shape is None or cell.placement is None:
            continue
        if cell.placement.mode == PlacementMode.GROUP:
            left_out.append(f"{cell.cell.name} needs several devices and is not probed")
            continue
        both = representatives(cell, plan.seed)
        first, last = (
            # Use all notes, even for few-shot cells, and no adapter: it may not be on this machine.
            replace(
                configuration,
                cell=replace(cell.cell, shots=None, shots_of="notes"),
                prompt_initialisation="random",
            )
            for configuration in (both[0], both[-1])
        )
        lanes = min(cell.placement.lanes, cell.num_fold_runs)
        chosen[like] = Probed(
            first.cell, (first, last), cell.shape, lanes, cell.placement.checkpoints
        )
    return list(chosen.values()), left_out


def read_probe(storage: str) -> list[Measured]:
    """Measurements of earlier probes, on any hardware.

    Raises:
        LedgerError: the file exists and cannot be read.
    """
    files = open_files(storage, "")
    try:
        if not files.exists(PROBE_FILE):
            return []
        values = json.loads(files.read(PROBE_FILE))
        return [Measured.from_values(m) for found in values["hardware"].values() for m in found]
    except OSError as error:
        raise LedgerError(
            f"{files.place(PROBE_FILE)}: cannot be read ({error_text(error)})"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise LedgerError(
            f"{files.place(PROBE_FILE)}: was not written by this version of raymrc; remove it, "
            "and run --probe again"
        ) from None


def write_probe(storage: str, measured: Sequence[Measured]) -> str:
    """Save measurements; those of other cells and other hardware stay.

    Returns:
        Path or URL of the file.

    Raises:
        LedgerError: the storage cannot be read or written.
    """
    replaced = {(m.hardware, m.like) for m in measured}
    kept = [m for m in read_probe(storage) if (m.hardware, m.like) not in replaced]
    by_hardware: dict[str, list[dict[str, Any]]] = {}
    for m in (*kept, *measured):
        by_hardware.setdefault(m.hardware, []).append(m.to_values())
    files = open_files(storage, "")
    content = json.dumps({"hardware": by_hardware}, indent=1).encode()
    try:
        files.write(PROBE_FILE, content, replace=True)
    except OSError as error:
        raise not_writable(files, error) from None
    return files.place(PROBE_FILE)
