"""A Ray whose own limits, seconds that a busy machine overruns, are the tests'."""

from helpers.processes import PATIENCE

SECONDS = (
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
    "RAY_gcs_rpc_server_connect_timeout_s",
    "RAY_gcs_server_request_timeout_seconds",
    "RAY_py_gcs_connect_timeout_s",
    "RAY_raylet_start_wait_time_s",
    "RAY_worker_register_timeout_seconds",
)
MILLISECONDS = ("RAY_agent_register_timeout_ms", "RAY_health_check_timeout_ms")
ENVIRONMENT = {
    "RAY_ADDRESS": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # not 15, with which a worker gets nothing of a busy machine
    **dict.fromkeys(SECONDS, f"{PATIENCE:.0f}"),
    **dict.fromkeys(MILLISECONDS, f"{1000 * PATIENCE:.0f}"),
}
"""What a process that starts a cluster needs of it."""
