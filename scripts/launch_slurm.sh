#!/usr/bin/env bash
# Runs `python -m lvb.train --distributed` on GPU nodes under Slurm: an example to adapt.
#
#   sbatch --nodes=2 scripts/launch_slurm.sh --config configs/lsnet_t.py \
#       --workdir /shared/runs/lsnet_t --data_dir /shared/data
#
# One task per GPU, which is how JAX finds its devices under Slurm; the two numbers of
# GPUs below have to agree. Three minutes before the time limit every task gets SIGTERM,
# saves and leaves with exit code 75; the job then queues itself again and continues.
# Set VENV to the environment that has lvb and jax[cuda12]; `.venv` otherwise.
#SBATCH --job-name=lvb
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
set -euo pipefail

if [[ $# -eq 0 ]]; then
  sed -n '2,/^#SBATCH/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
fi

# Slurm runs a copy of this file; the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source "${VENV:-.venv}/bin/activate"

code=0
srun --kill-on-bad-exit=0 python -m lvb.train --distributed "$@" || code=$?
if [[ $code -eq 75 ]]; then
  echo "stopped with the state saved; queueing again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
