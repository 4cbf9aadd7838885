#!/usr/bin/env bash
# Fine-tuning on one downstream task, on the GPUs of one node. From the top of the repository:
#     sbatch [--gpus-per-node G] slurm/finetune.sh --task TASK --data FOLDER --model MODEL [--SETTING VALUE ...]
#SBATCH --job-name=cmgems-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --requeue
#SBATCH --open-mode=append

# As in slurm/pretrain.sh.
ACTIVATE=${ACTIVATE-source .venv/bin/activate}
CONTAINER=${CONTAINER-}
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
[ "$PROCESSES" -eq 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

eval "$ACTIVATE"
set -uo pipefail
launch=(
    accelerate launch
    --config_file deepspeed_configs/ddp.yaml --num_processes "$PROCESSES" --main_process_port 0
)
export PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# shellcheck disable=SC2086  # a container's command is several words
exec srun --ntasks=1 --kill-on-bad-exit=1 $CONTAINER "${launch[@]}" cmgems/finetune.py "$@"
