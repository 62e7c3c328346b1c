"""One trial: what comes of a configuration's fold-runs, which hosts train, Tune is told here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune


def run_trial(config: Mapping[str, Any], *, reception: list[Any]) -> None:
    """The function that Tune runs; every finished fold-run is one report with its whole record.

    Args:
        config: "work": the `Work` of this trial; for schedulers to see. The driver has handed it in.
        reception: holds the actor of `reception.Reception`.
    """
    (actor,) = reception
    trial = tune.get_context().get_trial_id()
    is_over = False
    while not is_over:
        results, is_over = ray.get(actor.listen.remote(trial))
        for result in results:
            tune.report(result)
