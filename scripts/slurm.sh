#!/usr/bin/env bash
# A run on several nodes of a SLURM cluster, one process a node, on a file system that all share:
#
#   sbatch scripts/slurm.sh configs/cifar100.py /shared/runs/cifar100 [FLAG ...]
#
# The processes find each other by SLURM's own variables. Near the time limit SLURM sends SIGTERM:
# the run saves, and the same command goes on with it.
#SBATCH --job-name=dnrt_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

srun --kill-on-bad-exit=1 python -m dnrt_jax.main --config="$1" --workdir="$2" "${@:3}"
