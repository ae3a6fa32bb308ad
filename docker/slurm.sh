#!/bin/bash
#SBATCH --job-name=orchestrator
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:INT@300
# One verb of the orchestrator on a Ray cluster that lives as long as its job, a node of Ray on each node of the job:
#
#   sbatch docker/slurm.sh sweep my_study.yaml --storage /shared/runs resources.gpus_per_worker=1
#
# Submit from a folder that all nodes see, with `orchestrator` and `ray` in the PATH. Five minutes before the time limit
# the study ends its epoch; submitted again, or requeued after a preemption, it goes on where it was.
set -euo pipefail

# Ray's ports listen on every interface: a token of this job's own keeps the neighbors out.
folder=$(mktemp --directory "$PWD/.ray-$SLURM_JOB_ID-XXXX")
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
(umask 077; head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' > "$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0

# Since Slurm 22.05 srun does not take this over from sbatch, and a node of Ray would sit on one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

first=$SLURMD_NODENAME
# The address from which this node reaches the last of the job, so that one reaches it: its own name may stand for
# 127.0.1.1. Slurm knows where the last one is; for a job of one node it is this one.
last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail --lines=1)
last=$(scontrol --oneliner show node "$last" | grep --only-matching 'NodeAddr=[^ ]*')
host=$(python - "${last#*=}" <<'PYTHON'
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9)) # sends nothing
    print(probe.getsockname()[0])
PYTHON
)
address=$host:$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
others=$((SLURM_JOB_NUM_NODES - 1))
start=(ray start --block --num-cpus="${SLURM_CPUS_PER_TASK:-1}")
srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" \
    "${start[@]}" --head --node-ip-address="$host" --port="${address##*:}" > "$folder/log" 2>&1 &
until ray health-check --address "$address" > /dev/null 2>&1; do
    kill -0 $! 2> /dev/null || { cat "$folder/log" >&2; exit 3; }
    sleep 1
done
[ "$others" = 0 ] || srun --overlap --nodes="$others" --ntasks="$others" --exclude="$first" \
    "${start[@]}" --address="$address" >> "$folder/log" 2>&1 &
# A study counts the nodes once, when it starts.
timeout 300 python - "$address" "$SLURM_JOB_NUM_NODES" <<'PYTHON' || { cat "$folder/log" >&2; exit 3; }
import sys, time, ray
ray.init(sys.argv[1], logging_level="error", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
PYTHON

# What a script sends to the background ignores the signal that is to end its epoch, unless it is told not to.
(trap - INT; RAY_ADDRESS=$address exec orchestrator "$@") &
study=$!
trap 'signaled=1; kill -INT $study' INT
# The signal ends the wait, not the study.
while signaled=0 code=0; do
    wait $study || code=$?
    [ $signaled = 1 ] || break
done
exit $code
