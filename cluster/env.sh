# Environment of Ray's processes and of raylm's drivers on clusters of several machines; sourced.
# The same as in pods (`pod_env("train")`), to which a test holds it. Nothing leaves the cluster.
export DO_NOT_TRACK=1
export HF_HUB_DISABLE_TELEMETRY=1
export HF_HUB_OFFLINE=1
export RAY_USAGE_STATS_ENABLED=0
export RAY_DATA_DISABLE_PROGRESS_BARS=1
export RAY_TRAIN_V2_ENABLED=1
export RAY_TRAIN_METRICS_ENABLED=0
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5
# A node that answers nothing is called dead after about 20 s.
export RAY_health_check_initial_delay_ms=5000
export RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=4000
export RAY_health_check_failure_threshold=4
export RAY_worker_niceness=0
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=110
export RAY_ROTATION_MAX_BYTES=67108864
export RAY_ROTATION_BACKUP_COUNT=2
# Whoever reaches a port of Ray without the token runs nothing. RAY_AUTH_TOKEN_PATH says where it is.
export RAY_AUTH_MODE=token
