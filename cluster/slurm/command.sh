#!/usr/bin/env bash
# What raylm.sbatch has run on the head's node: raylm on the cluster, and how it ended.
set -u
raylm "$@" --set "cluster.address=$RAYLM_HEAD"
status=$?
printf '%s\n' "$status" > "$RAYLM_JOB_STATUS"
exit "$status"
