# Two targets. Neither holds a model: it comes from the Hugging Face hub into /cache, or from a folder that you mount.
#
#   docker build --target server -t tritonembed .
#   docker run --rm --gpus all --shm-size=1g -p 50051:50051 -v tritonembed-cache:/cache \
#     -e TRITONEMBED_MODEL=Snowflake/snowflake-arctic-embed-m-v1.5 tritonembed --replicas 2
#
# --shm-size: Triton and its python processes hand tensors to each other through /dev/shm, and Docker's 64 MB are too
# little for a GPU's worth of instances: 1g is plenty. Stopping: `docker stop --time 45` lets it finish what is in flight.
#
#   docker build --target client -t tritonembed-client .
#   docker run --rm tritonembed-client tritonembed embed --host triton.example --port 50051 "a sentence"
#   docker run --rm -p 50050:50050 -p 8080:8080 tritonembed-client \
#     tritonembed-manager serve --model my-model --server triton-1:50051 --server triton-2:50051 \
#     --load-balancing least_loaded
#
# least_loaded: with texts of very mixed lengths its p99 is 92 ms, and that of round_robin 242 ms.

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


FROM python:3.12-slim AS client
COPY --from=wheel /wheels /wheels
COPY requirements/cuda.lock /wheels/
# With hashes pip would want one of our own wheel, too: versions alone are the constraint.
RUN sed -i 's/ --hash=.*//' /wheels/cuda.lock \
    && pip install --no-cache-dir --constraint /wheels/cuda.lock "$(echo /wheels/*.whl)[manager]" \
    && useradd --uid 10001 --create-home tritonembed
USER 10001
CMD ["tritonembed", "--help"]


FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS server
# The container's own Python is the one that Triton's python backend embeds: everything goes there.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/cache \
    TRITONEMBED_TRITONSERVER=/opt/tritonserver/bin/tritonserver
COPY requirements/cuda.lock /tmp/requirements/
RUN pip install torch==2.11.0 --index-url https://download.pytorch.org/whl/cu130 \
    && sed -i '/^nvidia-pytriton==/d' /tmp/requirements/cuda.lock \
    && pip install --no-deps --require-hashes -r /tmp/requirements/cuda.lock \
    && rm -r /tmp/requirements
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl \
    && useradd --uid 10001 --create-home tritonembed \
    && install --directory --owner=tritonembed /cache
USER 10001
WORKDIR /home/tritonembed
VOLUME /cache
# Its HTTP and metrics listen in the container alone, unless --http-host and --metrics-host say otherwise.
EXPOSE 50051
# Triton calls itself ready when a python process of it has died: only an inference tells.
HEALTHCHECK --start-period=15m --interval=10s --timeout=10s --retries=3 \
    CMD ["tritonembed", "health", "--port", "50051"]
# Any option of `tritonembed-manager replica` follows, or is set as TRITONEMBED_…. A rendered repository of your own:
# --model-repository /models. Plain Triton: --entrypoint tritonserver … --model-repository=/models.
ENTRYPOINT ["tritonembed-manager", "replica"]
