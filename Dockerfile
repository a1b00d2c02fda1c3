# The server of a checkpoint; docs/docker.md says how to build and run it.
#
#   docker build -t erniem-fast .                             for CPUs
#   docker build -t erniem-fast --build-arg DEVICE=cu130 .    for NVIDIA GPUs: the name of PyTorch's index
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${DEVICE}
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /build
# The largest layer first, since it changes least.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY LICENSE README.md pyproject.toml ./
COPY kernels kernels
COPY erniem_fast erniem_fast
RUN pip install --constraint constraints.txt '.[serve]'

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# Triton builds the launchers of its kernels with a C compiler.
# hadolint ignore=DL3008
RUN if [ "$DEVICE" != cpu ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --create-home --uid 10001 server && install --directory --owner=server /models
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/models
# A number, by which Kubernetes sees that it is not root.
USER 10001
WORKDIR /home/server
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["erniem-fast", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["--model", "/model"]
