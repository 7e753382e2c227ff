#!/usr/bin/env bash
# What setup.sh runs on each host: install.sh MOUNT BUCKET REPOSITORY REVISION GOOGLE_KEY
set -euo pipefail
mount="$1" bucket="$2" repository="$3" revision="$4" google_key="$5"
if ! command -v gcsfuse > /dev/null; then
  # Of what is fetched, only the key of this fingerprint is trusted.
  keys=$(mktemp -d)
  curl -fsSL --proto '=https' https://packages.cloud.google.com/apt/doc/apt-key.gpg \
    | gpg --quiet --homedir "$keys" --import
  gpg --homedir "$keys" --export "$google_key" > "$keys/trusted.gpg"
  if [ ! -s "$keys/trusted.gpg" ]; then
    echo "the keys of packages.cloud.google.com do not hold GOOGLE_KEY=$google_key" >&2
    exit 1
  fi
  sudo install -m 644 "$keys/trusted.gpg" /usr/share/keyrings/cloud.google.gpg
  rm -r "$keys"
  source="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.gpg] $source" \
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
fi
sudo mkdir -p "$mount" && sudo chown "$(id -un)" "$mount"
mountpoint -q "$mount" || gcsfuse --implicit-dirs "$bucket" "$mount"
test -d fiberjax || git clone -q -- "$repository" fiberjax
cd fiberjax
git fetch -q origin
# A branch as it is there now, else a tag or a commit.
git checkout -q --detach "origin/$revision" 2> /dev/null || git checkout -q --detach "$revision"
# The version and the digest of its files are in the repository.
command -v "$HOME/.local/bin/uv" > /dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install \
  --quiet --user --require-hashes -r experiments/tpu/uv.txt
"$HOME/.local/bin/uv" sync --locked --extra tpu --extra hf
