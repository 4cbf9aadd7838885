#!/usr/bin/env bash
# A study on an array of jobs: each takes one arm and seed after another that no other job has, until none is left;
# another job then writes the study's page. From the top of the repository:
#     sbatch [--array=1-N] slurm/study.sh STUDY [--SETTING VALUE ...]
# Finished results are skipped: submit the same command again where jobs have failed.
#SBATCH --job-name=cmgems-study
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --open-mode=append

# As in slurm/pretrain.sh.
ACTIVATE=${ACTIVATE-source .venv/bin/activate}
CONTAINER=${CONTAINER-}
# How the job of the page is submitted, which needs no GPU: its partition, account and so on.
REPORT_OPTIONS=${REPORT_OPTIONS---time=00:30:00}

eval "$ACTIVATE"
set -uo pipefail
[ $# -ge 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
case $1 in -*) set -- "./$1" "${@:2}" ;; esac  # or it would be taken for an option
export PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# The first of the array submits the page, which waits for all of them, whether they succeed or not. There is no srun in
# it: that would go by the resources of this job, which stand in the environment.
report=cmgems-report-$SLURM_ARRAY_JOB_ID
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "$(squeue --noheader --name="$report")" ]; then
    # shellcheck disable=SC2086
    sbatch --dependency="afterany:$SLURM_ARRAY_JOB_ID" --job-name="$report" $REPORT_OPTIONS \
        --output="slurm-${SLURM_ARRAY_JOB_ID}_report.log" << REPORT
#!/usr/bin/env bash
$ACTIVATE
$CONTAINER cmgems report $(printf %q "$1")
REPORT
fi
# shellcheck disable=SC2086  # a container's command is several words
srun --ntasks=1 $CONTAINER cmgems study "$@"
code=$?
# 75: stopped by a signal ahead of the time limit; the work goes on in the same array.
[ "$code" = 75 ] && exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
exit "$code"
