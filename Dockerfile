# CPU image of the main job and the tests; results stay in the volume.
#   docker build -t steer . && docker run --rm -v steer-runs:/home/steer/steer-core/runs steer
# On Linux, pip takes the CUDA build of torch (gigabytes) unless PIP_EXTRA_INDEX_URL names an index of CPU builds:
#   docker build --build-arg PIP_EXTRA_INDEX_URL -t steer .
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home steer \
    && install -d -o steer -g steer /home/steer/steer-core /home/steer/steer-core/runs
USER steer
WORKDIR /home/steer/steer-core

# The dependencies first: an edit of the sources leaves this layer as it is. The stamp is `.[dev]` with constraints.txt.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
COPY --chown=steer:steer Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=steer:steer steer_core/__init__.py steer_core/
RUN make .venv/dev.stamp
COPY --chown=steer:steer . .

VOLUME /home/steer/steer-core/runs
CMD ["make", "run"]
