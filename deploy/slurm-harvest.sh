#!/usr/bin/env bash
# A harvest by eight workers, as an array of jobs: sbatch deploy/slurm-harvest.sh
# (`actstore harvest --engine slurm` submits such jobs by itself; this is for whoever wants to see or change them.)
#SBATCH --job-name=actstore-harvest
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=actstore-harvest-%A_%a.log
# Two minutes before the time is up, this script (B:) is told.
#SBATCH --signal=B:USR1@120
set -euo pipefail

# Where actstore was installed, on a disk that all nodes see.
source "${ACTSTORE_ENVIRONMENT:-$HOME/actstore}/bin/activate"

# The time is up: end, and wait in the queue again; what was committed is kept.
again() {
  kill -TERM "$worker" 2>/dev/null || true
  wait "$worker" || true
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  exit 0
}
trap again USR1

# In the background, since bash runs a trap only between commands.
actstore harvest --worker "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --model "${MODEL:-openai-community/gpt2}" --corpus "${CORPUS:-Skylion007/openwebtext}" \
  --sites "${SITES:-blocks.*.hook_mlp_out}" --tokens "${TOKENS:-100M}" \
  --out "${OUT:-$HOME/stores/gpt2}" --device "${DEVICE:-cuda}" --json &
worker=$!
wait "$worker"
