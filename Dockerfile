# Two images of the same steps. `cpu` (the default) holds the main job, the notebooks and their tests; `cuda` also
# DeepSpeed, vLLM, TRL and verl, for NVIDIA GPUs.
#   docker build -t steer . && docker run --rm -v steer-runs:/home/steer/steer-core/runs steer
#   docker build -t steer:cuda --target cuda . && docker run --rm --gpus all --ipc host -v steer-cache:/home/steer/.cache steer:cuda steer doctor
# JupyterLab on request; open the address that it prints:
#   docker run --rm -p 127.0.0.1:8888:8888 steer make notebooks
# On Linux, pip takes the CUDA build of torch (gigabytes) for `cpu` too, unless PIP_EXTRA_INDEX_URL names an index of
# CPU builds:
#   docker build --build-arg PIP_EXTRA_INDEX_URL -t steer .
ARG BASE_IMAGE=python:3.11-slim
# It brings nvcc, in the version of torch's CUDA: DeepSpeed and vLLM compile operators at their first use.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04

FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap make g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home steer \
    && install -d -o steer -g steer /home/steer/.cache /home/steer/steer-core /home/steer/steer-core/runs
USER steer
WORKDIR /home/steer/steer-core
ENV PATH=/home/steer/steer-core/.venv/bin:$PATH LAB="--ip 0.0.0.0 --no-browser" \
    PIP_NO_CACHE_DIR=1 TRITON_CACHE_DIR=/home/steer/.cache/triton
# The dependencies first: an edit of the sources leaves this layer as it is.
COPY --chown=steer:steer Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=steer:steer steer_core/__init__.py steer_core/
RUN make .venv/extras.stamp VLLM=vllm ENGINES=required
COPY --chown=steer:steer . .
VOLUME ["/home/steer/steer-core/runs", "/home/steer/.cache"]
EXPOSE 8888
HEALTHCHECK --interval=10m --timeout=2m CMD ["steer", "doctor"]
CMD ["make", "run"]

FROM ${BASE_IMAGE} AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home steer \
    && install -d -o steer -g steer /home/steer/.cache /home/steer/steer-core /home/steer/steer-core/runs
USER steer
WORKDIR /home/steer/steer-core
ENV PATH=/home/steer/steer-core/.venv/bin:$PATH LAB="--ip 0.0.0.0 --no-browser" \
    PIP_NO_CACHE_DIR=1 TRITON_CACHE_DIR=/home/steer/.cache/triton
ARG PIP_EXTRA_INDEX_URL
COPY --chown=steer:steer Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=steer:steer steer_core/__init__.py steer_core/
RUN make .venv/dev.stamp
COPY --chown=steer:steer . .
VOLUME ["/home/steer/steer-core/runs", "/home/steer/.cache"]
EXPOSE 8888
HEALTHCHECK --interval=10m --timeout=2m CMD ["steer", "doctor"]
CMD ["make", "run"]
