#!/usr/bin/env bash
# Sweeps over PostgreSQL: a server of this machine's packages on loopback, in a folder of its own, as a user that is not root; gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
[ -x "$bin/initdb" ] || bin=$(dirname "$(command -v initdb || echo /nowhere/initdb)")
[ -x "$bin/initdb" ] || { echo "postgres.sh: no PostgreSQL server here (Debian: apt-get install postgresql)" >&2; exit 2; }
folder=$(mktemp -d)
as=()
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
    as=(setpriv --reuid=nobody --regid=nogroup --clear-groups --)
    chown nobody:nogroup "$folder"
fi
stop() { "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"; }
trap stop EXIT
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cd "$folder"
"${as[@]}" "$bin/initdb" -D "$folder/data" -U entreg -A trust --no-sync >/dev/null
"${as[@]}" "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/log" -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder" start >/dev/null ||
    { cat "$folder/log" >&2; exit 1; }
"$bin/createdb" -h 127.0.0.1 -p "$port" -U entreg sweeps
cd "$OLDPWD"
ENTREG_POSTGRES="postgresql://entreg@127.0.0.1:$port/sweeps" python -m pytest -W ignore::pytest.PytestUnraisableExceptionWarning ${PYTEST_ARGS:-} tests/postgres_sweep.py
