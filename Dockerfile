# The engine with the order example. For your own workflows:
#   FROM agnt5
#   COPY app.py /app/
#   CMD ["processor", "app.py"]
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/agnt5 && python -m venv /opt/build
COPY requirements/ requirements/
RUN /opt/agnt5/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/agnt5/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/agnt5/bin/pip uninstall --yes pip

FROM python:3.13-slim
LABEL org.opencontainers.image.title="agnt5" \
      org.opencontainers.image.description="A durable workflow engine on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin agnt5 \
    && install --directory --owner=agnt5 --group=agnt5 /var/lib/agnt5 /app
COPY --from=build /opt/agnt5 /opt/agnt5
COPY --chown=agnt5:agnt5 examples/orders.py /app/orders.py
# The root file system may be mounted read-only: only the data directory is written to.
ENV PATH=/opt/agnt5/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AGNT5_DATA_DIR=/var/lib/agnt5 \
    AGNT5_LOG_FORMAT=json
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/agnt5
EXPOSE 8080
# A graceful stop checkpoints first.
STOPSIGNAL SIGTERM
# `agnt5 worker` serves no HTTP: it is healthy for as long as it lives.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; \
command = next((a for a in open('/proc/1/cmdline').read().split('\\0') if a in ('processor', 'worker')), None); \
command == 'worker' or urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["agnt5"]
CMD ["processor", "orders.py"]
