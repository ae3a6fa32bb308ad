#!/usr/bin/env bash
# A container engine for the tests: the one that answers, else one of our own, installed and started by hand.
#
#   engine.sh up      prints what to eval: DOCKER_HOST if it is our own, and ENGINE_STARTED=1 if it was started just now
#   engine.sh down    stops our own; images and build cache stay for the next time
#   engine.sh purge   stops it and deletes everything it holds
#
# Exit code 77: no engine can run here; the one line on stdout says why. Our own needs root and Debian 12 or newer, but
# no systemd: everything that it writes is in ENGINE_DIR.
set -euo pipefail
DIR=${ENGINE_DIR:-/var/tmp/orchestrator-engine}
SOCKET=unix://$DIR/docker.sock

unable() { echo "$*"; exit 77; }
answers() { command -v docker >/dev/null && DOCKER_HOST=$1 timeout 20 docker info >/dev/null 2>&1; }
complete() { command -v dockerd >/dev/null && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }

install_packages() {
    local options=(-y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io)
    apt-get update -qq || return
    # shellcheck disable=SC1091
    . /etc/os-release
    if [ "${VERSION_CODENAME:-}" != bookworm ]; then
        apt-get install "${options[@]}" iptables runc docker.io docker-cli docker-buildx docker-compose
        return
    fi
    # Debian 12's engine is too old for compose v2. Debian 13's packages run on it, all but runc; a private apt
    # configuration fetches them, so that the machine's own sources stay as they are.
    local apt=$DIR/apt mirror
    mkdir -p "$apt"/{sources,lists/partial,cache/archives/partial,packages}
    mirror=$(apt-cache policy | awk '/bookworm\/main/ && !/security/ {print $2; exit}')
    [ -n "$mirror" ] || { echo "apt has no Debian mirror"; return 1; }
    printf '%s\n' 'Types: deb' "URIs: $mirror" 'Suites: trixie' 'Components: main' \
        'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' > "$apt/sources/trixie.sources"
    local private=(-qq -o APT::Sandbox::User=root -o Dir::Etc::sourcelist=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::Etc::sourceparts=$apt/sources" -o "Dir::Cache=$apt/cache")
    apt-get "${private[@]}" update || return
    (cd "$apt/packages" && apt-get "${private[@]}" download docker.io docker-cli containerd docker-buildx docker-compose) || return
    apt-get install "${options[@]}" iptables runc "$apt"/packages/*.deb || return
    rm -rf "$apt"
}

install_engine() {
    complete && return
    command -v apt-get >/dev/null || unable "there is no docker with compose and buildx, and no apt-get to install them"
    DEBIAN_FRONTEND=noninteractive install_packages > "$DIR/install.log" 2>&1 \
        || unable "docker could not be installed: $(tail -n 1 "$DIR/install.log")"
    complete || unable "docker was installed, but dockerd, compose or buildx is missing"
}

start() {
    # Networks of containers must not send larger packets than the machine's own link takes.
    local device mtu pid
    device=$(awk '$2 == "00000000" {print $1; exit}' /proc/net/route)
    mtu=$(cat "/sys/class/net/${device:-lo}/mtu")
    [ "$mtu" -le 9000 ] || mtu=1500
    cp /proc/sys/net/ipv4/ip_forward "$DIR/ip_forward.before"
    { iptables -S FORWARD 2>/dev/null || true; } | head -n 1 > "$DIR/forward.before"
    rm -f "$DIR/docker.pid"
    setsid nohup dockerd --data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/docker.pid" --host "$SOCKET" \
        --mtu "$mtu" --default-network-opt "bridge=com.docker.network.driver.mtu=$mtu" > "$DIR/dockerd.log" 2>&1 < /dev/null &
    pid=$!
    for _ in $(seq 120); do
        answers "$SOCKET" && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    kill "$pid" 2>/dev/null || true
    unable "dockerd did not start: $(grep -v 'level=info' "$DIR/dockerd.log" | tail -n 2 | tr -s '\n ' ' ')"
}

up() {
    if answers "$SOCKET"; then
        echo "export DOCKER_HOST=$SOCKET"
        return
    fi
    ! { answers "${DOCKER_HOST:-}" && docker compose version >/dev/null 2>&1; } || return 0
    [ "$(id -u)" = 0 ] || unable "no container engine answers, and only root can start one"
    mkdir -p "$DIR"
    install_engine
    start
    echo "export DOCKER_HOST=$SOCKET ENGINE_STARTED=1"
}

down() {
    local pid
    if answers "$SOCKET"; then
        DOCKER_HOST=$SOCKET docker ps --quiet | DOCKER_HOST=$SOCKET xargs --no-run-if-empty docker stop --time 5 >/dev/null || true
    fi
    if [ -s "$DIR/docker.pid" ]; then
        pid=$(cat "$DIR/docker.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 120); do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
        ip link delete docker0 2>/dev/null || true
        ! grep -q 'FORWARD ACCEPT' "$DIR/forward.before" || iptables -P FORWARD ACCEPT
        cat "$DIR/ip_forward.before" > /proc/sys/net/ipv4/ip_forward
    fi
    umount "$DIR"/exec/netns/* 2>/dev/null || true
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    purge) down; rm -rf "$DIR" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
