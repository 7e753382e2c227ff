#!/usr/bin/env bash
# Trains on every host of every slice: train.sh CONFIG RUN_NAME [--config.x=y ...]
# The same command resumes, after a preemption too. One host alone works as well.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
config="${1:?usage: train.sh CONFIG RUN_NAME [flags]}"
run="${2:?usage: train.sh CONFIG RUN_NAME [flags]}"
shift 2
everywhere "cd fiberjax && bash experiments/tpu/host.sh $(printf '%q ' "$MOUNT" "$config" "$run" "$@")"
