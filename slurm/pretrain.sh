#!/usr/bin/env bash
# Pretraining on any number of nodes and GPUs. From the top of the repository, which all nodes share:
#     sbatch [--nodes N --gpus-per-node G ...] slurm/pretrain.sh RECIPE CONFIG [--SETTING VALUE ...]
# RECIPE: a file or the name of a recipe; CONFIG: ddp, zero2 and so on, or a file for `accelerate launch`.
# docs/slurm.md says what happens at a time limit, a pre-emption, a failure, and how to stop.
#SBATCH --job-name=cmgems
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=slurm-%j.log
# One launcher per node; the same job again after a failure, with the same log.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append

# The run's folder. Name the one of an earlier job to continue its run.
OUTPUT=${OUTPUT:-runs/slurm-$SLURM_JOB_ID}
case $OUTPUT in -*) OUTPUT=./$OUTPUT ;; esac  # or the programs below would take it for an option
# What makes `accelerate` available on a node: modules, conda, a virtual environment; nothing for a container that has it.
ACTIVATE=${ACTIVATE-source .venv/bin/activate}
# What the launcher runs in, such as: apptainer exec --nv --bind /scratch cmgems.sif
CONTAINER=${CONTAINER-}
# Training processes a node, the same number on each (--gpus-per-node, not --gpus).
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
# How often the job may be started again, by SLURM or by this script.
MAX_RESTARTS=${MAX_RESTARTS:-50}
# Seconds that a step and its checkpoint may take after a signal. --signal above has to leave more than that.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
# The network that the nodes meet on, where the default is not the right one: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME; and
# the first node's address or name in it: ADDRESS, or ADDRESS_SUFFIX, which is put after the name that SLURM has for it.
ADDRESS=${ADDRESS-} ADDRESS_SUFFIX=${ADDRESS_SUFFIX-}
# Threads of each process, on CPUs; several processes a node take one each unless this says otherwise.
[ "$PROCESSES" -eq 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
recipe=$1 config=$2
shift 2

# In an array of jobs, such as one job a seed, a bare number would mean all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restart=${SLURM_RESTART_COUNT:-0}
logs=$OUTPUT/logs/$SLURM_JOB_ID
codes=$logs/exit-codes-$restart  # each training process notes its exit code there, which launchers do not pass on
say() { echo "$(date '+%F %T') job $SLURM_JOB_ID, restart $restart: $*"; }
newest_checkpoint() { find "$OUTPUT/checkpoints" -maxdepth 1 -name 'step-*[0-9]' 2>/dev/null | sort | tail -n 1; }
again=OUTPUT=$(printf %q "$OUTPUT")  # as it can be pasted into a shell
any_ended_with() { grep -qsx "$1" "$codes"/rank-*; }

if grep -qsx 0 "$logs"/exit-codes-*/rank-0; then
    say "nothing left to do: an earlier start has reached the last step"
    exit 0
elif [ "$restart" -gt "$MAX_RESTARTS" ]; then
    say "given up: started again $MAX_RESTARTS times (MAX_RESTARTS)"
    exit 1
elif [ -e "$OUTPUT/stop" ]; then
    say "not started: there is $OUTPUT/stop"
    exit 0
fi
mkdir -p "$codes"
export CMGEMS_EXIT_CODES=$codes PYTHONUNBUFFERED=1
start=$(newest_checkpoint)

# ---- One launcher a node. What follows "bash -c" is expanded by each task, on its node.
[ "$SLURM_NNODES" -gt 1 ] && several=_multinode || several=
[ -f "$config" ] || config=deepspeed_configs/$config$several.yaml
[ -f "$config" ] || [ -n "$CONTAINER" ] || { say "CONFIG: there is no file $config"; exit 2; }
address=${ADDRESS:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)$ADDRESS_SUFFIX}
launch=(
    accelerate launch --config_file="$config"
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * PROCESSES))
    --main_process_ip "$address" --main_process_port $((15000 + SLURM_JOB_ID % 15000))
)
training=(
    cmgems/pretrain.py --config="$recipe" --output="$OUTPUT" --resume auto
    --launch.processes $((SLURM_NNODES * PROCESSES)) "$@"
)
say "on $SLURM_JOB_NODELIST, $PROCESSES process(es) a node, from ${start:-the beginning}; the nodes meet at $address; logs in $logs"
# SLURM_EXPORT_ENV: also in a job that was submitted with --export=NONE, the tasks get what stands here.
export ACTIVATE CONTAINER SLURM_EXPORT_ENV=ALL SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# shellcheck disable=SC2016
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --output="${logs//%/%%}/restart-$restart-%N.log" bash -c '
    eval "$ACTIVATE"
    split=$1
    exec $CONTAINER "${@:2:split}" --machine_rank "$SLURM_NODEID" "${@:2+split}"
' task ${#launch[@]} "${launch[@]}" "${training[@]}" &
srun=$!

# ---- Until it ends. A signal or the file makes all processes save a checkpoint at the end of their step and end.
signalled=
stop_training() {
    signalled=$1
    say "$1: asking the training to save a checkpoint and stop"
    # Again until it is there: it may be about to begin.
    ( until scancel --signal=TERM "$job.0" 2>/dev/null || ! kill -0 "$srun" 2>/dev/null; do sleep 2; done ) &
}
trap 'stop_training "signal ahead of the time limit or a pre-emption"' USR1
trap 'stop_training "SIGTERM"' TERM
trap 'stop_training "found $OUTPUT/stop"' USR2
( until [ -e "$OUTPUT/stop" ]; do sleep 5; done; kill -USR2 $$ ) &
watcher=$!
while :; do
    signalled=
    wait "$srun"
    status=$?
    [ -n "$signalled" ] || break  # a signal ends `wait` before its time
done
kill "$watcher" 2>/dev/null

# ---- What now? Whatever is neither the end nor a user error is worth another start.
end=$(newest_checkpoint)
state=$(scontrol show job "$job" --oneliner | grep -o 'JobState=[A-Z_]*')
if grep -qsx 0 "$codes/rank-0"; then
    say "done: the training has reached its last step"
    exit 0
elif any_ended_with 2; then
    say "ended by invalid settings or data, which $logs/restart-$restart-*.log names: not started again"
    exit 2
elif [ -e "$OUTPUT/stop" ]; then
    say "stopped with ${end:-no checkpoint}; remove $OUTPUT/stop and submit with $again to continue"
    exit 0
elif [ "$state" = JobState=CANCELLED ]; then
    say "cancelled with ${end:-no checkpoint}; submit with $again to continue"
    exit 1
elif any_ended_with 75; then
    reason="stopped by a signal"
else
    reason="a process or a node has failed (srun: $status), see $logs/restart-$restart-*.log"
    echo "${end:-none}" >> "$logs/failed-after"
    if [ "$(tail -n 3 "$logs/failed-after" | grep -cxF "${end:-none}")" = 3 ]; then
        say "given up: $reason, for the third time without a newer checkpoint than ${end:-none}"
        exit 1
    fi
fi
if [ "$restart" -ge "$MAX_RESTARTS" ]; then
    say "given up: $reason, and started again $MAX_RESTARTS times already (MAX_RESTARTS)"
    exit 1
fi
say "$reason: the job returns to the queue, to resume from ${end:-the beginning}"
case $state in  # in any other, SLURM has put it there itself
    JobState=RUNNING | '') scontrol requeue "$job" || { say "SLURM refuses: submit with $again to continue"; exit 1; } ;;
esac
