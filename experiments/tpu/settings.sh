# shellcheck shell=bash
# Names of your project; nothing else here needs editing. Each may be set in the environment.
export PROJECT="${PROJECT:-my-project}"
export ZONE="${ZONE:-us-central2-b}"
export TPU_NAME="${TPU_NAME:-fiberjax}"
# As `gcloud compute tpus accelerator-types list` names it: v5litepod-16 is v5e:4x4.
export ACCELERATOR="${ACCELERATOR:-v5litepod-16}"
# `gcloud compute tpus versions list` has the newest: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, ...
export RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
# Slices joined by the data-centre network; mesh.data must be a multiple of it.
export SLICES="${SLICES:-1}"
# A bucket in the zone's region: runs, checkpoints and warm starts live there, seen by every host.
export BUCKET="${BUCKET:-my-bucket}"
# What each host clones: the address in pyproject.toml, where there is one.
here="$(dirname "${BASH_SOURCE[0]}")"
export REPOSITORY="${REPOSITORY:-$(sed -n 's/^repository = "\(.*\)"$/\1/p' "$here/../../pyproject.toml")}"
export REVISION="${REVISION:-main}"
# Fingerprint of the key that signs Google's packages, of which gcsfuse is one.
export GOOGLE_KEY="${GOOGLE_KEY:-35BAA0B33E9EB396F59CA838C0BA5CE6DC6315A3}"
# Where the bucket appears on every host.
export MOUNT="${MOUNT:-/mnt/fiberjax}"

nodes() {
  if [ "$SLICES" = 1 ]; then echo "$TPU_NAME"; return; fi
  for i in $(seq 0 $((SLICES - 1))); do echo "$TPU_NAME-$i"; done
}

# Runs a command on every host of every slice; fails if one of them does.
everywhere() {
  local pids=() node status=0
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" --project="$PROJECT" --zone="$ZONE" \
      --worker=all --command="$1" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
  return "$status"
}
