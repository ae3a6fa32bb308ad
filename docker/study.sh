#!/bin/sh
# Joins the Ray cluster as a node without resources (a driver needs a node beneath it), then runs one orchestrator verb:
#   study.sh sweep quickstart
set -eu
log=$(mktemp)
ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=100000000 > "$log" 2>&1 || {
    cat "$log" >&2
    echo "no Ray cluster could be joined at $RAY_ADDRESS" >&2
    exit 3
}
exec orchestrator "$@"
