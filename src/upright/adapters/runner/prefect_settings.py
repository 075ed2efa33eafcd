"""Settings of Prefect that Upright wants, each with its reason. The embedded server and the runner apply them.

`NAME: (value, why)`; `environment()` gives the plain variables. What is set in the environment already wins.
"""

from __future__ import annotations

from collections.abc import Mapping

SERVER_SETTINGS: Mapping[str, tuple[str, str]] = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": ("false", "a medic doesn't phone home"),
    "DO_NOT_TRACK": ("1", "likewise"),
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": ("200", "one statement an event is two thirds of its CPU"),
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": ("200", "likewise"),
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": ("1", "task runs show in the UI a second later"),
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": ("200", "likewise"),
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": ("200", "likewise"),
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": ("1", "likewise"),
}

CLIENT_SETTINGS: Mapping[str, tuple[str, str]] = {
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": ("false", "our own store remembers what was done"),
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": ("ignore", "our own lines outside runs are not Prefect's"),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": ("false", "never start a second, hidden server"),
    "DO_NOT_TRACK": ("1", "a medic doesn't phone home"),
}


def environment(settings: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, (value, _) in settings.items()}
