# ihc2he in a container, for a CPU or for GPUs:
#   docker build -t ihc2he .
#   docker build -t ihc2he --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#   docker run --rm --shm-size=2g -v "$PWD:/work" -u "$(id -u):$(id -g)" ihc2he experiment=predict_tiles data.path=my/tiles data.mpp=0.5
# With GPUs: docker run --gpus all ... The drivers come from the machine, the libraries of CUDA with PyTorch.
ARG BASE=ubuntu:24.04

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3.12 -m venv /opt/venv
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY ihc2he ihc2he
COPY conf conf
ARG EXTRAS=slides
RUN pip install -c constraints.txt ".[${EXTRAS}]"

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3.12 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 user \
    && install -d -o user /work
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /work
ENTRYPOINT ["python", "-m", "ihc2he.train"]
