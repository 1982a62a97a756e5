# Four targets, none with a model: it comes from the Hugging Face hub into /cache, or from a folder that you mount.
#
#   docker build --target server  -t tritonembed .           one server on GPUs, in NVIDIA's container of Triton
#   docker build --target cpu     -t tritonembed-cpu .       one server on a CPU, with the Triton of a wheel
#   docker build --target manager -t tritonembed-manager .   `serve` over servers elsewhere, and the client
#
#   docker run --rm --gpus all --shm-size=1g -p 50051:50051 -v tritonembed-cache:/cache \
#     -e TRITONEMBED_MODEL=Snowflake/snowflake-arctic-embed-m-v1.5 tritonembed --replicas 2
#   docker run --rm -p 50050:50050 -p 8080:8080 tritonembed-manager serve --model my-model \
#     --server triton-1:50051 --server triton-2:50051 --load-balancing least_loaded
#
# least_loaded: with texts of very mixed lengths its p99 is 92 ms, and that of round_robin 242 ms.
# --shm-size: Triton and its python processes hand tensors to each other through /dev/shm, and Docker's 64 MB are too
# little for a GPU's worth of instances: 1g is plenty. Stopping: `docker stop --time 45` lets it finish what is in flight.
# The root file system may be read-only: only /cache, /tmp and /dev/shm are written.
#
# docs/guides/container.md says what was built and run. `make pin-images` adds digests to the base images.

ARG DEBIAN_IMAGE=debian:bookworm-slim
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3
# For the labels; REVISION is the commit that is built: --build-arg REVISION=$(git rev-parse HEAD).
ARG VERSION=0.2.0
ARG REVISION=""

# hadolint ignore=DL3006
FROM ${DEBIAN_IMAGE} AS python
# Debian's stable release has one version of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libpython3.11 python3.11 python3.11-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home tritonembed
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore


FROM python AS wheel
WORKDIR /source
COPY . .
RUN python3.11 -m venv /build && /build/bin/pip wheel --no-deps --wheel-dir /wheels .


FROM python AS manager
COPY requirements/cpu.lock /tmp/requirements/
COPY --from=wheel /wheels /tmp/wheels
# With hashes pip would want a hash of our own wheel, too: versions alone are the constraint.
RUN sed -i 's/ --hash=.*//' /tmp/requirements/cpu.lock \
    && python3.11 -m venv /opt/tritonembed \
    && /opt/tritonembed/bin/pip install --constraint /tmp/requirements/cpu.lock \
         "$(echo /tmp/wheels/*.whl)[manager,envoy,redis,tracing]" \
    && rm -r /tmp/requirements /tmp/wheels
ENV PATH=/opt/tritonembed/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/tritonembed
EXPOSE 50050 8080
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tritonembed-manager" \
      org.opencontainers.image.description="One endpoint over many servers of text embeddings" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# An inference through the manager.
HEALTHCHECK --start-period=15m --interval=10s --timeout=10s --retries=3 \
    CMD ["tritonembed", "health", "--port", "50050"]
ENTRYPOINT ["tritonembed-manager"]
CMD ["--help"]


FROM python AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/torch-cpu.lock requirements/cpu.lock /tmp/requirements/
# What only checks the source is left out.
RUN python3.11 -m venv /opt/tritonembed \
    && sed -i -E '/^(grimp|hypothesis|import-linter|matplotlib|mypy|pytest[a-z-]*|ruff)==/d' /tmp/requirements/cpu.lock \
    && /opt/tritonembed/bin/pip install --no-deps --require-hashes --index-url "$TORCH_INDEX" \
         -r /tmp/requirements/torch-cpu.lock \
    && /opt/tritonembed/bin/pip install --no-deps --require-hashes -r /tmp/requirements/cpu.lock \
    && rm -r /tmp/requirements
COPY --from=wheel /wheels /tmp/wheels
# vLLM's operators for a CPU are linked with libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && /opt/tritonembed/bin/pip install --no-deps /tmp/wheels/*.whl \
    && rm -r /tmp/wheels \
    && install --directory --owner=tritonembed /cache
ENV PATH=/opt/tritonembed/bin:$PATH PYTHONUNBUFFERED=1 HOME=/cache HF_HOME=/cache/huggingface TRITONEMBED_DEVICE=cpu
USER 10001
WORKDIR /cache
VOLUME /cache
EXPOSE 50051
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tritonembed-cpu" \
      org.opencontainers.image.description="A Triton server of text embeddings, on a CPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
HEALTHCHECK --start-period=15m --interval=10s --timeout=10s --retries=3 \
    CMD ["tritonembed", "health", "--port", "50051"]
ENTRYPOINT ["tritonembed-manager", "replica"]


# hadolint ignore=DL3006
FROM ${TRITON_IMAGE} AS server
# The container's own Python is the one that Triton's python backend embeds: everything goes there.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements/cuda.lock /tmp/requirements/
RUN pip install torch==2.11.0 --index-url https://download.pytorch.org/whl/cu130 \
    && sed -i '/^nvidia-pytriton==/d' /tmp/requirements/cuda.lock \
    && pip install --no-deps --require-hashes -r /tmp/requirements/cuda.lock \
    && rm -r /tmp/requirements
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl \
    && rm -r /tmp/wheels \
    && useradd --uid 10001 --create-home tritonembed \
    && install --directory --owner=tritonembed /cache
ENV PYTHONUNBUFFERED=1 HOME=/cache HF_HOME=/cache/huggingface \
    TRITONEMBED_TRITONSERVER=/opt/tritonserver/bin/tritonserver
USER 10001
WORKDIR /cache
VOLUME /cache
# Its HTTP and metrics listen in the container alone, unless --http-host and --metrics-host say otherwise.
EXPOSE 50051
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tritonembed" \
      org.opencontainers.image.description="A Triton server of text embeddings, on GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Triton calls itself ready when a python process of it has died: only an inference tells.
HEALTHCHECK --start-period=15m --interval=10s --timeout=10s --retries=3 \
    CMD ["tritonembed", "health", "--port", "50051"]
# Any option of `tritonembed-manager replica` follows, or is set as TRITONEMBED_…. A rendered repository of your own:
# --model-repository /models. Plain Triton: --entrypoint tritonserver … --model-repository=/models.
ENTRYPOINT ["tritonembed-manager", "replica"]
