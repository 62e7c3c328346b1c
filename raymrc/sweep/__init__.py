"""The only rooms that import ray.

Ray and Tune read their switches from the environment, some of them when ray is first
imported; so this package sets them before any of its modules can import it. What the
user has set stays.
"""

from __future__ import annotations

import os
import secrets

SWITCHES = {
    # Nothing leaves the machine unasked.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A trial stays in the folder that the user started from: paths of a study are relative to it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # We show progress and write records ourselves; Tune's tables would go to stdout.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The ledger is the resumption, so Tune need not write down its own state.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # We take Ctrl-C ourselves.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",
}

for _name, _value in SWITCHES.items():
    os.environ.setdefault(_name, _value)

if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
    # A cluster of our own, for this process alone, under a token of its own. Ray's default would
    # leave a token file in HOME, which then decides how clusters started later behave.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
