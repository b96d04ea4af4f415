# Images of raylm, for docker, podman and buildah:
#
#   LOCK=serve  serving on CPUs: Ray Serve and the OpenVINO engine, without torch (the default)
#   LOCK=run    every stage, and the torch engine; torch brings CUDA's libraries with it
#
#   docker build -t raylm .                        docker build -t raylm:run --build-arg LOCK=run .
#   docker build --target bom --output dist .      (the bill of materials alone)
#
# BASE: a Debian with python3 in its packages. The result has no compiler and no package installer
# of Python's, runs as a user without rights, and writes to /store, /tmp and /home/raylm alone.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates tini wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log

FROM base AS packages
ARG LOCK=serve
ARG UV=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON=/opt/raylm/bin/python
# The base's certificates count, for builds behind a proxy with a certificate of its own.
ENV UV_SYSTEM_CERTS=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv \
 && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv==${UV}" \
 && python3 -m venv --without-pip /opt/raylm
COPY requirements/${LOCK}.txt /src/lock.txt
RUN /opt/uv/bin/uv pip install --requirements /src/lock.txt

FROM packages AS build
COPY pyproject.toml README.md LICENSE /src/
COPY raylm /src/raylm
COPY helm /src/helm
COPY k8s/kuberay /src/k8s/kuberay
# raylm's own files apart, so that a new version is a small layer over the packages.
RUN touch /src/before && /opt/uv/bin/uv pip install --no-deps /src && mkdir /own && cd / \
 && find opt/raylm -cnewer /src/before ! -type d -print0 \
  | tar --null --files-from=- -cf - | tar -xf - -C /own

# What is inside, as CycloneDX, read from the environment itself.
FROM build AS listing
ARG CYCLONEDX=7.5.0
RUN python3 -m venv /opt/cyclonedx \
 && /opt/cyclonedx/bin/pip install --no-cache-dir "cyclonedx-bom==${CYCLONEDX}" \
 && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible \
      --pyproject /src/pyproject.toml --output-file /bom.cdx.json /opt/raylm/bin/python

FROM scratch AS bom
COPY --from=listing /bom.cdx.json /

FROM base AS raylm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="raylm" \
      org.opencontainers.image.description="Train, compress and serve language models on Ray" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 raylm \
 && useradd --uid 10001 --gid 10001 --home-dir /home/raylm --create-home --shell /usr/sbin/nologin raylm \
 && install -d -o 10001 -g 10001 /store
COPY --from=packages /opt/raylm /opt/raylm
COPY --from=build /own /
COPY --from=listing /bom.cdx.json /usr/share/doc/raylm/
ENV PATH=/opt/raylm/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/raylm \
    RAYLM_STORE=/store \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
USER 10001:10001
WORKDIR /home/raylm
EXPOSE 8000
STOPSIGNAL SIGTERM
# Of `raylm serve`. Kubernetes has the charts' probes instead, and ignores it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["wget", "--quiet", "--tries=1", "--output-document=/dev/null", "http://127.0.0.1:8000/readyz"]
ENTRYPOINT ["/usr/bin/tini", "--", "raylm"]
CMD ["--help"]
