#!/usr/bin/env bash
# Trains on every host of every slice: train.sh CONFIG RUN_NAME [--config.x=y ...]
# The same command resumes, after a preemption too. One host alone works as well.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
config="${1:?usage: train.sh CONFIG RUN_NAME [flags]}"
run="${2:?usage: train.sh CONFIG RUN_NAME [flags]}"
shift 2
# Data sets are built once on each host, from a seed; runs and warm starts are shared.
# Ends what an earlier start may have left on the chips.
everywhere "pkill -f experiments/[t]rain.py; sleep 2; cd fiberjax && JAX_COMPILATION_CACHE_DIR=\$HOME/jax_cache \
  \$HOME/.local/bin/uv run --no-sync python experiments/train.py --distributed=on \
  --config=$config --workdir=$MOUNT/runs/$run --config.tasks.data_dir=\$HOME/data \
  --config.warm_start.directory=$MOUNT/warm_starts $(printf '%q ' "$@")"
