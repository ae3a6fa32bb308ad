#!/usr/bin/env bash
# The images that docker/ builds on: pulled, or, where no registry answers, made from Debian's packages under the same
# name (label standin=1): close enough to test with, never to publish. Making them needs root and Debian.
set -euo pipefail
PYTHON=python:3.11-slim-bookworm
POSTGRES=postgres:15-bookworm

present() { docker image inspect "$1" >/dev/null 2>&1 || timeout 60 docker pull --quiet "$1" >/dev/null 2>&1; }

make_python() {
    local mirror scratch=/tmp root
    command -v mmdebstrap >/dev/null || {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap
    } >/dev/null 2>&1
    mirror=$(apt-cache policy | awk '/bookworm\/main/ && !/security/ {print $2; exit}')
    [ -n "$mirror" ] || { echo "apt has no Debian mirror" >&2; return 1; }
    # In memory if there is room: dpkg waits for the disk after every step.
    [ "$(df --output=avail --block-size=1M /dev/shm | tail -n 1)" -lt 1500 ] || scratch=/dev/shm
    root=$(mktemp --directory --tmpdir="$scratch")
    # shellcheck disable=SC2016
    TMPDIR=$root mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,netbase,tzdata,python3,python3-venv,python3-pip \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED "$1"/var/cache/apt/*.bin' \
        --customize-hook='printf "Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\nDPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb\"; };\n" > "$1/etc/apt/apt.conf.d/clean"' \
        --customize-hook='for name in python python3; do ln -sf /usr/bin/python3.11 "$1/usr/local/bin/$name"; done' \
        bookworm "$root/python.tar" "deb $mirror bookworm main" "deb $mirror bookworm-updates main" \
        "deb $mirror-security bookworm-security main"
    docker import --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
        --change 'LABEL standin=1' --change 'CMD ["python3"]' "$root/python.tar" "$PYTHON" >/dev/null
    rm -rf "$root"
}

# Understands what docker/compose.yaml sets: POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD_FILE.
make_postgres() {
    local folder
    folder=$(mktemp --directory)
    cat > "$folder/Dockerfile" <<EOF
FROM $PYTHON
RUN groupadd --system --gid 999 postgres \\
 && useradd --system --gid postgres --uid 999 --home-dir /var/lib/postgresql postgres \\
 && mkdir /etc/postgresql-common && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \\
 && apt-get update && apt-get install -y --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/* \\
 && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data \\
 && install -d -o postgres -g postgres -m 3777 /var/run/postgresql
ENV PATH=\$PATH:/usr/lib/postgresql/15/bin PGDATA=/var/lib/postgresql/data
COPY --chmod=755 entrypoint.sh /usr/local/bin/
USER postgres
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["entrypoint.sh"]
CMD ["postgres"]
EOF
    cat > "$folder/entrypoint.sh" <<'EOF'
#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=scram-sha-256 --auth-local=trust
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait -o "-c listen_addresses=''" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait --mode=fast stop
fi
exec "$@" -c 'listen_addresses=*'
EOF
    docker build --quiet --label standin=1 --tag "$POSTGRES" "$folder" >/dev/null
    rm -rf "$folder"
}

present "$PYTHON" || make_python
present "$POSTGRES" || make_postgres
