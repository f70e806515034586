#!/bin/bash
# The part of the official image's entry point that the tests need.
set -Eeuo pipefail
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown -R postgres "$(dirname "$PGDATA")"
    chmod 700 "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata "$PGDATA" --username postgres --pwfile "$POSTGRES_PASSWORD_FILE" --auth-host scram-sha-256 --auth-local trust \
        --encoding UTF8 --locale C --locale-provider builtin --builtin-locale C.UTF-8 >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses='' -c unix_socket_directories=/tmp" --wait start >/dev/null
    for script in /docker-entrypoint-initdb.d/*.sh; do
        PGHOST=/tmp PGUSER=postgres POSTGRES_USER=postgres bash "$script"
    done
    pg_ctl --pgdata "$PGDATA" --mode fast --wait stop >/dev/null
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
