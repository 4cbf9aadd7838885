#!/usr/bin/env bash
# A model on a suite of downstream tasks, its tasks and seeds divided over an array of jobs; another job then writes the
# report of the model's run. From the top of the repository:
#     sbatch [--array=1-N] slurm/benchmark.sh RUN/models/step-00010000 --data FOLDER [--SETTING VALUE ...]
# Finished scores are skipped: submit the same command again where jobs have failed.
#SBATCH --job-name=cmgems-benchmark
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --open-mode=append

# As in slurm/pretrain.sh.
ACTIVATE=${ACTIVATE-source .venv/bin/activate}
CONTAINER=${CONTAINER-}
# How the job of the report is submitted, which needs no GPU: its partition, account and so on.
REPORT_OPTIONS=${REPORT_OPTIONS---time=00:30:00}
# The folder that the report is about, where the model is not in a run's folder: what --output names.
RUN=${RUN:-$(dirname -- "$(dirname -- "${1:-}")")}
case $RUN in -*) RUN=./$RUN ;; esac  # or it would be taken for an option

eval "$ACTIVATE"
set -uo pipefail
[ $# -ge 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
if [ "$SLURM_ARRAY_TASK_MIN" != 1 ] || [ "$SLURM_ARRAY_TASK_COUNT" != "$SLURM_ARRAY_TASK_MAX" ]; then
    echo "an array of other numbers than 1 to N leaves tasks out: sbatch --array=1-N; what is done is not done again" >&2
    exit 2
fi
model=$1
shift
export PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# The first of the array submits the report, which waits for all of them, whether they succeed or not. There is no srun in
# it: that would go by the resources of this job, which stand in the environment.
report=cmgems-report-$SLURM_ARRAY_JOB_ID
if [ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ -z "$(squeue --noheader --name="$report")" ]; then
    # shellcheck disable=SC2086
    sbatch --dependency="afterany:$SLURM_ARRAY_JOB_ID" --job-name="$report" $REPORT_OPTIONS \
        --output="slurm-${SLURM_ARRAY_JOB_ID}_report.log" << REPORT
#!/usr/bin/env bash
$ACTIVATE
$CONTAINER cmgems report $(printf %q "$RUN")
REPORT
fi
# shellcheck disable=SC2086  # a container's command is several words
exec srun --ntasks=1 $CONTAINER cmgems benchmark --model="$model" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" "$@"
