"""One Tune trial: it passes a configuration's results on from the coordinator to Tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune


def run_trial(config: Mapping[str, Any], *, coordinator: list[Any]) -> None:
    """Report each finished fold-run with its whole record, and epochs on the way.

    Args:
        config: "work" holds this trial's `WorkItem`, for schedulers; the driver has submitted it already.
        coordinator: holds the `Coordinator` actor.
    """
    (actor,) = coordinator
    trial = tune.get_context().get_trial_id()
    is_over = False
    while not is_over:
        results, is_over = ray.get(actor.listen.remote(trial))
        for result in results:
            tune.report(result)
