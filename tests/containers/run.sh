#!/usr/bin/env bash
# `make test-containers`: an engine, the base images, the image, then a study on the stack while a worker crashes.
# Where no engine can run it says so in one line and fails; with ALLOW_SKIP=1 it exits 0, and nothing counts as tested.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
step() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
skip() {
    echo "container tests SKIPPED, nothing was tested: $1"
    [ "${ALLOW_SKIP:-0}" = 1 ] || { echo "(ALLOW_SKIP=1 accepts that)"; exit 1; }
    exit 0
}

code=0
environment=$("$here/engine.sh" up) || code=$?
[ "$code" != 77 ] || skip "$environment"
[ "$code" = 0 ] || exit "$code"
eval "$environment"
# An engine of our own goes when we do and keeps its images; one that ran before stays as it was.
[ -z "${ENGINE_STARTED:-}" ] || trap '"$here/engine.sh" down' EXIT
root=$(docker info --format '{{.DockerRootDir}}')
if [ -d "$root" ]; then
    free=$(df --output=avail --block-size=1G "$root" | tail -n 1 | tr -d ' ')
    [ "$free" -ge 12 ] || skip "$free GiB are free in $root, 12 are needed"
fi
step "engine ready: $(docker version --format '{{.Server.Version}}')"

"$here/base_images.sh" || skip "no registry answers, and the base images can't be made from Debian's packages"
step "base images ready"

# A machine's own certificates and the folder of its wheels reach the build as a secret and as a build context.
[ ! -s /etc/ssl/certs/ca-certificates.crt ] || export CA_BUNDLE=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
links=$(python3 -m pip config get global.find-links 2>/dev/null || true)
[ ! -d "$links" ] || export WHEELS=${WHEELS:-$links}
log=$(mktemp)
(cd docker && docker compose --progress plain build) > "$log" 2>&1 || { tail -n 40 "$log"; exit 1; }
step "image built: $(docker image ls --format '{{.Size}}' energy-orchestrator:cpu)"

"${PYTHON:-python3}" -m pytest --exitfirst -p no:cacheprovider --durations=0 --durations-min=5 tests/containers/check_stack.py
step "done"
