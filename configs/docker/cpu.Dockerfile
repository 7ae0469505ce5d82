# streamd with OpenVINO, for a machine without an NVIDIA GPU. From the root of the repository:
#
#   docker build -f configs/docker/cpu.Dockerfile -t streamd:cpu .
#   docker run --rm --network host streamd:cpu demo
#
# This file was linted but never built, because no Docker engine was available.

FROM python:3.12-slim-bookworm AS build
WORKDIR /source
# A C compiler, for the compiled step of the tracker.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml requirements.lock README.md CHANGELOG.md LICENSE ./
COPY streamd streamd
COPY configs configs
COPY systemd systemd
COPY docs docs
RUN python -m venv /opt/streamd \
    && /opt/streamd/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/streamd/bin/pip install --no-cache-dir '.[demo]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/streamd /opt/streamd
RUN useradd --system --home-dir /var/lib/streamd --create-home streamd
USER streamd
WORKDIR /var/lib/streamd
ENV PATH="/opt/streamd/bin:$PATH" PYTHONUNBUFFERED=1
# Ports: 9188 page and metrics, 5555 messages. SIGTERM drains.
EXPOSE 9188 5555
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamd"]
CMD ["run", "/etc/streamd/streamd.yaml"]
