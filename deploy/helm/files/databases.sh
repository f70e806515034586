#!/bin/bash
# Run once by the image of PostgreSQL: a database and a role per service, none of which can enter another's.
set -Eeuo pipefail

sql() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres "$@"; }

sql <<<'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;'
for secret in /run/secrets/*_database_password; do
    name=$(basename "$secret" _database_password)
    sql --set name="$name" --set password="$(<"$secret")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
ALTER ROLE :"name" SET statement_timeout = '15s';
ALTER ROLE :"name" SET lock_timeout = '5s';
ALTER ROLE :"name" SET idle_in_transaction_session_timeout = '30s';
SQL
done
