#!/usr/bin/env bash
# Gives the slices back; what is in the bucket stays.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
gcloud compute tpus queued-resources delete "$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
  --force --quiet
