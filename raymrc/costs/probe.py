"""TODO: say what this module holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raymrc.configuration import Cell, Configuration
from raymrc.costs.rates import (
    Measured,
)
from raymrc.errors import LedgerError
from raymrc.ledger.storage import not_writable, open_files, said
from raymrc.planning.placement import PlacementMode
from raymrc.planning.plan import (
    Plan,
    representatives,
)

if TYPE_CHECKING:
    from raymrc.model.shapes import Shape


PROBE = "probe.json"
"""In the study's storage."""


SECONDS_OF_PROBE = 40.0
"""That all cells' probes may take together, the start of their processes aside."""


@dataclass(frozen=True)
class Probed:
    """A cell that a probe measures: the first of a backbone and strategy.

    Args:
        configurations: two of them, which may be the same.
        lanes: side by side, as it is placed.
    """

    cell: Cell
    configurations: tuple[Configuration, Configuration]
    shape: Shape
    lanes: int
    recomputes: bool


def choose_probed(plan: Plan) -> tuple[list[Probed], list[str]]:
    """What to measure, and a sentence for each cell that one device cannot."""
    chosen: dict[tuple[str, str], Probed] = {}
    left_out = []
    for cell in plan.cells:
        like = (cell.cell.backbone.name, cell.cell.strategy)
        if like in chosen or cell.shape is None or cell.placement is None:
            continue
        if cell.placement.mode == PlacementMode.GROUP:
            left_out.append(f"{cell.cell.name} wants several devices and is not measured")
            continue
        both = representatives(cell, plan.seed)
        first, last = (
            # All notes, whatever a cell of few shots has; and no adapter, which may not be here.
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
    """What probes have measured, on any hardware; nothing where there was none.

    Raises:
        LedgerError: there is one and it cannot be read.
    """
    files = open_files(storage, "")
    try:
        if not files.exists(PROBE):
            return []
        values = json.loads(files.read(PROBE))
        return [Measured.from_values(one) for of in values["hardware"].values() for one in of]
    except OSError as error:
        raise LedgerError(f"{files.place(PROBE)}: cannot be read ({said(error)})") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise LedgerError(
            f"{files.place(PROBE)}: is not a probe of this version of raymrc; remove it, and probe again"
        ) from None


def write_probe(storage: str, measured: Sequence[Measured]) -> str:
    """Keep what a probe has measured; of other cells and other hardware what is there stays.

    Returns:
        Where.

    Raises:
        LedgerError: the storage cannot be read or written.
    """
    again = {(one.hardware, one.like) for one in measured}
    kept = [one for one in read_probe(storage) if (one.hardware, one.like) not in again]
    by_hardware: dict[str, list[dict[str, Any]]] = {}
    for one in (*kept, *measured):
        by_hardware.setdefault(one.hardware, []).append(one.to_values())
    files = open_files(storage, "")
    content = json.dumps({"hardware": by_hardware}, indent=1).encode()
    try:
        files.write(PROBE, content, replace=True)
    except OSError as error:
        raise not_writable(files, error) from None
    return files.place(PROBE)
