# One image per service: docker build --build-arg SERVICE=items -t tollhouse/items .
# It holds that service, its locked dependencies and nothing to build with; it runs as nobody on a read-only file system.

ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS build
# The version that uv.lock names; a test keeps the two together.
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=0 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/app \
    UV_PYTHON_DOWNLOADS=never
# Only `strip` is wanted of it, and nothing of it reaches the image: any version does.
# hadolint ignore=DL3008
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip install --no-cache-dir --root-user-action=ignore "uv==${UV_VERSION}"
WORKDIR /src
# A layer of its own: it changes when uv.lock does, not with every change of the sources.
ARG SERVICE
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --no-install-workspace --package "tollhouse-${SERVICE:?is missing: --build-arg SERVICE=items}"
COPY . .
RUN uv sync --frozen --no-dev --no-editable --package "tollhouse-${SERVICE}" \
    && sh deploy/image/assemble.sh "${SERVICE}" /app

FROM ${BASE}
ARG SERVICE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="tollhouse-${SERVICE}" \
      org.opencontainers.image.description="Tollhouse: ${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONDONTWRITEBYTECODE=1
# What could install more has no place in what runs.
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore pip \
    && rm -rf "$(python -c 'import ensurepip; print(ensurepip.__path__[0])')" \
    # Where a volume may be mounted; the only place the service could write to.
    && install -d -o 10001 -g 10001 /data
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BIND_HOST=0.0.0.0 \
    LOG_FORMAT=json \
    PORT=8000
WORKDIR /app
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["healthcheck"]
ENTRYPOINT ["service"]
CMD ["serve"]
