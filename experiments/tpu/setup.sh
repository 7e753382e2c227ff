#!/usr/bin/env bash
# Installs the project on every host and mounts the bucket; safe to run again.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
if [ -z "$REPOSITORY" ]; then
  echo "REPOSITORY is not set: the address of the repository that every host clones" >&2
  exit 1
fi
# Values go as arguments, so that none of them is read as a command.
everywhere "bash -c $(printf '%q ' "$(cat "$(dirname "$0")/install.sh")" install.sh \
  "$MOUNT" "$BUCKET" "$REPOSITORY" "$REVISION" "$GOOGLE_KEY")"
