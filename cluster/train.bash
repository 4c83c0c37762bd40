# shellcheck shell=bash
# What the train_*.sbatch files have in common, sourced by them with PYTHON and the arguments of pipelines/train.py set.
#
# One task for each GPU, not one launcher for each node: nothing stands between Slurm and the ranks, so a signal reaches
# every rank, an exit code comes back, and a dead rank ends the job at once. cmdist reads its rank from SLURM_PROCID.
#
# The job stays the same job until the run is finished:
#   USR1 (180 s before the time limit, or from preemption), TERM
#       the ranks finish their step, commit, and the job is requeued
#   a dead rank or node, a hang, an error of the network or store
#       the job is requeued and goes on from the newest committed step
#   an impossible configuration, missing data, an unwritable run
#       pre-flight says so and the job ends
#   MAX_RESTARTS requeues in a row that have not come through pre-flight, or without a newly committed step
#       pre-flight, or this file, says so and the job ends
#   another job that trains in the same run folder
#       pre-flight says so and the job ends
#   scancel
#       the ranks commit, and the job ends
# Log: this file's lines and pre-flight in NAME-JOBID.log; the ranks' own in logs/NAME-JOBID/NODE.log, appended over all
# restarts.

set -u -o pipefail

MAX_RESTARTS=${MAX_RESTARTS:-5}
STOPPED=75 # exit code of a run that was asked to stop, sysexits' "try again"
LOST=${LOST:-180} # seconds after the first rank has failed, for srun to end: it waits for a node that is gone unnoticed
GRACE=150  # seconds after USR1 for the step and the checkpoint; at 180 Slurm would end the job for good

# The settings of the network that a site may have to make, e.g. the interface that both libraries should use:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# One thread for each rank on CPUs: more spin against each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONUNBUFFERED=1

attempt=${SLURM_RESTART_COUNT:-0}
step=""
code=0
stopping=""
timer=""
guard=""

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID, start $attempt: $*"; }

# Only while this start is the job's current one: Slurm requeues after a preemption and a node failure by itself, after
# scancel nobody should, and the script of a node that was cut off must not requeue the start that has replaced it.
requeue() {
    local job
    for _ in {1..20}; do
        if job=$(scontrol --oneliner show job "$SLURM_JOB_ID"); then
            if [[ $job != *" JobState=RUNNING "* || $job != *" Restarts=$attempt "* ]]; then
                say "not requeued here: Slurm has already ended this start"
                return
            fi
            say "requeued"
            scontrol requeue "$SLURM_JOB_ID" && return
        fi
        sleep 3 # a controller that restarts
    done
    say "could not be requeued; the same sbatch command goes on from the newest committed step"
}

stop() {
    stopping=$1 trapped=yes
    if [[ -z $step ]]; then return; fi
    say "$1: the ranks finish their step and commit"
    kill -USR1 "$step" 2>/dev/null
    if [[ $1 == USR1 && -z $timer ]]; then # one, however often it comes
        (
            trap 'kill "$!" 2>/dev/null; exit' TERM # with its sleep, which would keep the log open
            sleep "$GRACE" &
            wait "$!" && say "not done within $GRACE s" && requeue
        ) &
        timer=$!
    fi
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
trap 'kill $timer $guard 2>/dev/null' EXIT

# A job step of all ranks; sets `code`. In the background, as bash runs a trap only when `wait` returns.
ranks() {
    rm -f "$CMDIST_FAILURE"
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" &
    step=$!
    bound "$step" &
    guard=$!
    [[ -z $stopping ]] || kill -USR1 "$step" # it came before there was a step to tell
    local status
    while
        trapped=""
        wait "$step"
        status=$?
        ((status == 127)) || code=$status # 127: it ended while the trap ran, and the status is known already
        [[ -n $trapped ]]
    do :; done
    kill "$guard" 2>/dev/null
    step="" guard=""
}

# End an srun that does not end by itself once a rank has failed: one of its nodes does not answer any more.
bound() {
    trap 'kill "$!" 2>/dev/null; exit' TERM
    while sleep 5 & wait "$!"; do
        if [[ -s $CMDIST_FAILURE ]]; then
            sleep "$LOST" &
            wait "$!"
            say "srun has not ended within $LOST s: a node does not answer"
            kill -KILL "$1" 2>/dev/null
            return
        fi
    done
}

# 2 and 4 (fenced: another start has taken the run over) would come again at the next start.
end() {
    [[ ! -s $CMDIST_FAILURE ]] || say "$1, the first to fail: $(<"$CMDIST_FAILURE")"
    if ((code == 2 || code == 4)); then
        say "$1 ended with exit code $code: not started again"
        exit "$code"
    fi
    say "$1 ended with exit code $code${stopping:+ after $stopping}"
    requeue
    exit "$code"
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
logs=logs/$SLURM_JOB_NAME-$SLURM_JOB_ID
mkdir -p "$logs" || exit 2
# where the first rank that fails writes why, and a line for each start in a row that has not come through pre-flight
export CMDIST_FAILURE=$PWD/$logs/first-failure-$attempt # a process of an older start may still be dying
refused=$logs/refused
# Ranks are Slurm's: what a launcher left in the shell of sbatch would win over them.
unset RANK WORLD_SIZE LOCAL_RANK
# Below the ephemeral ports, and another one at the next start, in case a process of the last one is still dying.
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((10000 + (SLURM_JOB_ID * 16 + attempt) % 20000))

say "$SLURM_NTASKS ranks on ${nodes[*]}; their log is $logs/NODE.log"
ranks --wait=60 "$PYTHON" pipelines/preflight.py --starts "$logs/starts.json" --max-restarts "$MAX_RESTARTS" "$@"
if ((code != 0)); then
    echo "$attempt" >>"$refused"
    if ((code != 2 && code != 4 && $(wc -l <"$refused") > MAX_RESTARTS)); then
        say "$MAX_RESTARTS restarts in a row have not come through pre-flight"
        code=2
    fi
    end pre-flight
fi
rm -f "$refused"

# One rank that ends badly ends all; ranks that stay behind when others are done get two minutes.
ranks --kill-on-bad-exit=1 --wait=120 --output="$logs/%N.log" --open-mode=append \
    "$PYTHON" pipelines/train.py --stopped-exit "$STOPPED" "$@"
if ((code != 0)); then end training; fi
say "finished"
