"""Runs a study on Ray: Tune trials, hosts and worker groups, and the coordinator actor that hands out work.

The only room that imports ray; it may import `scheduling` and the rooms below it. Enter at
`driver.run_study`.

Ray and Tune read their switches from the environment, some of them when ray is first imported. So this
package sets them before any of its modules can import ray. A switch that the user has set stays.
"""

from __future__ import annotations

import os
import secrets

SWITCHES = {
    # Nothing leaves the machine unasked.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A study's paths are relative to the folder that the user started from.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # raymrc shows progress and writes records itself; Tune's tables would go to stdout.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # A study is resumed from its ledger, so Tune need not save its own state.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # raymrc handles Ctrl-C itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",
}

for _name, _value in SWITCHES.items():
    os.environ.setdefault(_name, _value)

if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
    # Our own cluster serves this process alone, under its own token. Ray's default would leave a token
    # file in HOME, which decides how clusters started later behave.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
