# Two images: `worker` runs the examples' workers, schedulers and producers; `exporter` serves their metrics.
# Replace the examples with your application. Beside it, an image needs only the package jobmetrics.
# The base image is pinned by its tag. To pin its content too, add a digest: python:TAG@sha256:...

FROM python:3.13.7-slim-bookworm AS base
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Both images have the same user, so the exporter can read the workers' registry directory.
# A new volume that is mounted on one of these directories gets its owner.
RUN groupadd --gid 10001 jobs \
    && useradd --uid 10001 --gid jobs --no-create-home --shell /usr/sbin/nologin jobs \
    && install --directory --owner=jobs --group=jobs --mode=0700 /run/jobmetrics /var/lib/shop

FROM base AS build-worker
WORKDIR /build
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY jobmetrics jobmetrics
COPY rules rules
COPY dashboards/grafana dashboards/grafana
RUN pip install --no-cache-dir --constraint constraints.txt ".[celery,rq]"

FROM build-worker AS build-exporter
RUN pip install --no-cache-dir --constraint constraints.txt ".[celery,rq,exporter]"

FROM base AS worker
COPY --from=build-worker /venv /venv
COPY examples /app
WORKDIR /app
USER 10001:10001

FROM base AS exporter
COPY --from=build-exporter /venv /venv
USER 10001:10001
ENV JOBMETRICS_DIR=/run/jobmetrics JOBMETRICS_LISTEN=0.0.0.0:9909
EXPOSE 9909
ENTRYPOINT ["jobmetrics", "exporter"]
