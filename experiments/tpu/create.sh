#!/usr/bin/env bash
# Asks for the slices of settings.sh as a queued resource and waits until they are there.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
if [ "$SLICES" = 1 ]; then
  which=(--node-id="$TPU_NAME")
else
  which=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
fi
# SPOT=1 asks for capacity that may be taken back: a restart resumes from the newest checkpoint.
[ "${SPOT:-0}" = 1 ] && which+=(--spot)
gcloud compute tpus queued-resources create "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${which[@]}"
while true; do
  state=$(gcloud compute tpus queued-resources describe "$TPU_NAME" --project="$PROJECT" \
    --zone="$ZONE" --format='value(state.state)')
  echo "$(date +%T) $state"
  case "$state" in
    ACTIVE) break ;;
    FAILED | SUSPENDED) exit 1 ;;
  esac
  sleep 30
done
