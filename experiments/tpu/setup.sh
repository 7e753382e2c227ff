#!/usr/bin/env bash
# Installs the project on every host and mounts the bucket; safe to run again.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
if [ -z "$REPOSITORY" ]; then
  echo "REPOSITORY is not set: the address of the repository that every host clones" >&2
  exit 1
fi
everywhere "
set -e
if ! command -v gcsfuse > /dev/null; then
  release=gcsfuse-\$(lsb_release -cs)
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \$release main\" \
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  curl -s https://packages.cloud.google.com/apt/doc/apt-key.gpg \
    | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
fi
sudo mkdir -p '$MOUNT' && sudo chown \$USER '$MOUNT'
mountpoint -q '$MOUNT' || gcsfuse --implicit-dirs '$BUCKET' '$MOUNT'
command -v \$HOME/.local/bin/uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
test -d fiberjax || git clone -q '$REPOSITORY' fiberjax
cd fiberjax
git fetch -q origin
# A branch as it is there now, else a tag or a commit.
git checkout -q --detach 'origin/$REVISION' 2> /dev/null || git checkout -q --detach '$REVISION'
\$HOME/.local/bin/uv sync --extra tpu --extra hf
"
