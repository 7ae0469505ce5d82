# streamd with TensorRT and NVDEC, for a machine with an NVIDIA GPU, its driver (560 or newer) and the NVIDIA Container
# Toolkit. From the root of the repository:
#
#   docker build -f configs/docker/gpu.Dockerfile -t streamd:gpu .
#   docker run --rm --gpus all --network host streamd:gpu demo
#
# The first start builds a TensorRT plan, which takes minutes; keep it with -v streamd-cache:/var/lib/streamd/.cache
# This file was linted but never built, because no Docker engine was available.

# pycuda is compiled during installation, which needs CUDA's headers: they remain in this stage.
FROM nvidia/cuda:12.6.3-devel-ubuntu24.04 AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml requirements.lock README.md CHANGELOG.md LICENSE ./
COPY streamd streamd
COPY configs configs
COPY systemd systemd
COPY docs docs
# Extras of pyproject.toml, such as demo,mqtt or fleet,nats.
ARG EXTRAS=demo
# TensorRT for CUDA 12: the newest `tensorrt` would be for CUDA 13.
RUN python3 -m venv /opt/streamd \
    && /opt/streamd/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/streamd/bin/pip install --no-cache-dir ".[$EXTRAS]" 'tensorrt-cu12>=10.3,<11' pycuda 'cuda-bindings~=12.6'

FROM nvidia/cuda:12.6.3-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/streamd /opt/streamd
RUN useradd --system --home-dir /var/lib/streamd --create-home streamd
USER streamd
WORKDIR /var/lib/streamd
# video enables NVDEC, utility enables nvidia-smi.
ENV PATH="/opt/streamd/bin:$PATH" PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,video,utility
# Ports: 9188 page and metrics, 5555 messages. SIGTERM drains.
EXPOSE 9188 5555
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamd"]
CMD ["run", "/etc/streamd/streamd.yaml"]
