#!/usr/bin/env bash
# build.sh [SERVICE]…: build the image of each service (by default of all) as tollhouse/SERVICE:TAG, with Docker or Buildah.
#
# TAG (default dev) and BASE (an image to build on) may be set. With Buildah, BUILD_MOUNTS lists what a build needs to reach its
# package index, such as a mirror's settings or certificates: "/etc/ssl/certs:/etc/ssl/certs mirror.conf:/etc/pip.conf".
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

arguments=(--build-arg "VERSION=${TAG:-dev}" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
[ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")

if docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
    build=(docker buildx build --load)
elif command -v buildah >/dev/null; then
    # --format docker: the other one has no health checks.
    build=(buildah bud --quiet --layers --format docker --isolation "${BUILDAH_ISOLATION:-chroot}")
    for mount in ${BUILD_MOUNTS:-}; do
        build+=(--volume "$mount:ro")
    done
else
    echo "make images: there is neither Docker (a running one, with buildx) nor Buildah on this machine." >&2
    exit 2
fi

for service in "${@:-$(.venv/bin/python -m deploy.services)}"; do
    for name in $service; do
        echo "Building tollhouse/$name:${TAG:-dev}"
        "${build[@]}" "${arguments[@]}" --build-arg "SERVICE=$name" --tag "tollhouse/$name:${TAG:-dev}" . >/dev/null
    done
done
