#!/usr/bin/env bash
# Runs `python -m lvb.train --distributed` on every host of a TPU pod slice.
#
#   scripts/launch_pod.sh NAME ZONE setup
#   scripts/launch_pod.sh NAME ZONE start --config configs/lsnet_t.py \
#       --workdir /mnt/shared/runs/lsnet_t --data_dir /mnt/shared/data
#   scripts/launch_pod.sh NAME ZONE log       # the last lines of each host
#   scripts/launch_pod.sh NAME ZONE stop      # SIGTERM: the state is saved, exit code 75
#
# NAME is a TPU VM that exists: gcloud compute tpus tpu-vm create NAME --zone ZONE ...
# `setup` copies the checked-out commit, so commit first, and installs it. The workdir
# lies on a file system that all hosts mount, NFS for example. `start` returns at once;
# the same `start` again continues a run that was stopped or preempted. Set PROJECT to
# use another project than gcloud's default.
set -euo pipefail

usage() {
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}

[[ $# -ge 3 ]] || usage
name=$1 zone=$2 action=$3
shift 3
where=("--zone=$zone" --worker=all ${PROJECT:+"--project=$PROJECT"})
root=$(cd "$(dirname "$0")/.." && pwd)

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$1"
}

case $action in
  setup)
    bundle=$(mktemp -d)/lvb.bundle
    git -C "$root" bundle create "$bundle" HEAD
    gcloud compute tpus tpu-vm scp "$bundle" "$name:lvb.bundle" "${where[@]}"
    on_all_hosts "rm -rf lvb && git clone -q lvb.bundle lvb && cd lvb &&
      python3 -m venv .venv && .venv/bin/pip install -q -e . 'jax[tpu]' \
        -f https://storage.googleapis.com/jax-releases/libtpu_releases.html &&
      .venv/bin/python -c 'import jax; print(jax.local_device_count(), \"chips\")'"
    ;;
  start)
    [[ $# -gt 0 ]] || usage
    # Quoted for the remote shell word by word.
    words=$(printf ' %q' python -m lvb.train --distributed "$@")
    on_all_hosts "cd lvb && source .venv/bin/activate &&
      if pgrep -f '[l]vb.train --distributed' >/dev/null; then
        echo 'a run is under way on this host; stop it first' >&2; exit 1; fi &&
      (nohup$words >>\$HOME/lvb.log 2>&1; echo \"exit code \$?\" >>\$HOME/lvb.log) \
        </dev/null >/dev/null 2>&1 &"
    echo "started; look with: $0 $name $zone log"
    ;;
  log)
    on_all_hosts "echo \"== \$(hostname)\"; tail -n ${LINES_SHOWN:-5} lvb.log"
    ;;
  stop)
    on_all_hosts "pkill -TERM -f '[l]vb.train --distributed' || echo 'nothing runs'"
    ;;
  *)
    usage
    ;;
esac
