# For a CPU:   docker build --tag unfused-fast .
# For a GPU:   docker build --tag unfused-fast --build-arg EXTRA=cuda13 \
#                  --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .
# Use:         docker run --rm --user "$(id -u)" --volume "$PWD:/data" unfused-fast shard sounds shards
#              and for a GPU: docker run --gpus all --shm-size 8g ...
ARG BASE=ubuntu:24.04
FROM ${BASE}

# cpu, cuda12 or cuda13: what requirements/ locks. CUDA's libraries come with these packages; the base has what the
# driver needs.
ARG EXTRA=cpu
# More flags for pip, as the README names for PyTorch's smaller builds without CUDA.
ARG PIP_ARGS=""

# A compiler and Python.h: for the Triton kernels, and for torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE cli.py ./
COPY requirements requirements
COPY kernels kernels
COPY shards shards
COPY unfused_fast unfused_fast
# hadolint ignore=DL3013,SC2086
RUN pip install --no-cache-dir ${PIP_ARGS} --constraint "requirements/${EXTRA}.txt" ".[${EXTRA}]" \
    && unfused-fast --version

# Copies of sets behind URLs, and log-mels of read-only sets; any user may write there.
ENV UNFUSED_CACHE=/cache HOME=/tmp
RUN mkdir --mode 1777 /cache /data
WORKDIR /data
USER 1000
ENTRYPOINT ["unfused-fast"]
CMD ["--help"]
