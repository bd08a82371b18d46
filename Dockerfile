# The service as an image, in two targets: `cpu` (the default, no torch) and `gpu`.

FROM python:3.11-slim AS builder
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/build/constraints.txt
RUN python -m venv /venv
# No source yet: this installs the dependencies alone, and stays cached until they change.
COPY pyproject.toml constraints.txt ./

FROM builder AS cpu-builder
RUN /venv/bin/pip install '.[cpu,otel]'

FROM python:3.11-slim AS source
WORKDIR /app
COPY models models
COPY service service
# The files come as they lie on the disk, where perhaps their owner alone may read them.
RUN chmod -R a+rX .

FROM python:3.11-slim AS base
RUN useradd --system --uid 10001 --no-create-home rnp \
    && install --directory --owner rnp /cache
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    RNP_HOST=0.0.0.0 \
    RNP_PORT=8000 \
    RNP_CACHE_DIR=/cache
WORKDIR /app
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['RNP_PORT']}/readyz\")"]
CMD ["python", "-m", "service"]

FROM base AS cpu
COPY --from=cpu-builder /venv /venv
COPY --from=source /app /app

FROM builder AS gpu-builder
RUN /venv/bin/pip install '.[gpu,otel]'

FROM base AS gpu
# Triton compiles what launches its kernels where it runs.
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001
ENV TRITON_CACHE_DIR=/cache/triton
COPY --from=gpu-builder /venv /venv
COPY --from=source /app /app

# What a build without a target gives.
FROM cpu
