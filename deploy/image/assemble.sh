#!/bin/sh
# assemble.sh SERVICE ROOT: what turns the environment in ROOT into the service's image. Run by the Dockerfile, in the repository.
set -eu
service=$1
root=$2

# Debug symbols, sources of compiled modules and the libraries' own test suites: a third of the size, and nothing that runs.
# Libraries that a wheel brings along (*.libs) are left alone: their loader paths were patched in.
find "$root" -name '*.so*' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} +
find "$root" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.cpp' \
    -o -name '*.h' -o -name '*.hpp' -o -name '*.proto' -o -name '*.bat' -o -name 'activate*' \) -delete
rm -rf "$root/.lock" "$root/.gitignore" "$root/include"
site=$("$root/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/sqlalchemy/testing" "$site/alembic/testing" "$site/mako/testing" "$site/greenlet/tests"
# Tollhouse runs on PostgreSQL only (docs/adr/0003).
rm -rf "$site/sqlalchemy/dialects/mssql" "$site/sqlalchemy/dialects/mysql" "$site/sqlalchemy/dialects/oracle" "$site/sqlalchemy/dialects/sqlite"
# What libraries keep for programs of years ago.
rm -rf "$site/pydantic/v1" "$site/websockets/legacy"

if [ -d "services/$service/migrations" ]; then
    cp -r "services/$service/migrations" "$root/migrations"
fi
install -m 755 deploy/image/healthcheck.py "$root/bin/healthcheck"
variable=$(echo "$service" | tr '[:lower:]' '[:upper:]')_MIGRATIONS_DIR
cat >"$root/bin/service" <<EOF
#!/bin/sh
export $variable=/app/migrations
exec python -m $service "\$@"
EOF
chmod 755 "$root/bin/service"

"$root/bin/python" deploy/image/compile.py "$service"
