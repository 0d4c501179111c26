#!/usr/bin/env bash
# One SAE, trained on all GPUs of two nodes: sbatch deploy/slurm-torchrun.sh
#SBATCH --job-name=actstore-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=actstore-train-%j.log
# Two minutes before the time is up, this script (B:) is told.
#SBATCH --signal=B:USR1@120
set -euo pipefail

# Where actstore was installed, on a disk that all nodes see.
source "${ACTSTORE_ENVIRONMENT:-$HOME/actstore}/bin/activate"

# The time is up: torchrun passes the signal on, and training saves after the step under way.
again() {
  kill -TERM "$training" 2>/dev/null || true
  wait "$training" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

# Processes meet at the first node; batches are divided by 8 (docs/guides/several-gpus.md), so 8 processes at most.
# (sed reads every name; head would leave early and, with pipefail, end this script.)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# --resume is right for the first time as well, and after a requeue.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${GPUS:-4}" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m trainer train --store "${STORE:-$HOME/stores/gpt2}" --sae batch_topk --k 64 --expansion 32 --rows 100M \
  --out "${OUT:-$HOME/runs/gpt2}" --device cuda --resume &
training=$!
wait "$training"
