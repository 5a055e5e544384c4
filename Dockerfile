# The image of every paystream process: workers, one-shot commands and the simulator.
# What is in it comes from requirements-image.lock, each file named by its hash.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/paystream
WORKDIR /src
# The lock first: as long as it does not change, this layer is taken from the cache.
COPY requirements-image.lock ./
RUN /opt/paystream/bin/pip install --quiet --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline ./pipeline
COPY topics ./topics
COPY schemas ./schemas
COPY consumers ./consumers
COPY producers ./producers
# A real wheel, not an editable install, and without a download: the build backend is in the lock.
RUN /opt/paystream/bin/pip install --quiet --no-deps --no-index --no-build-isolation .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/paystream --create-home paystream
COPY --from=build /opt/paystream /opt/paystream
ENV PATH=/opt/paystream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PAYSTREAM_STATE_DIR=/var/lib/paystream
USER paystream
WORKDIR /var/lib/paystream
# Docker's own stop signal is SIGTERM, on which a worker finishes what it has begun and commits.
ENTRYPOINT ["paystream"]
CMD ["--help"]
