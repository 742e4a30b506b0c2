# A Takhin broker: docker build -t takhin . (docs/operating.md tells how to run it).

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libnghttp2-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md ./
COPY takhin ./takhin
RUN python -m venv /opt/takhin \
    && /opt/takhin/bin/pip install --no-cache-dir --disable-pip-version-check . \
    && find /opt/takhin -name '*.so' -path '*/takhin/rpc/fast/*' -print -quit | grep -q .

FROM python:3.11-slim-bookworm
# What the fast front is linked with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnghttp2-14 \
    && rm -rf /var/lib/apt/lists/*
# Data and certificates belong to a user that has nothing else.
RUN groupadd --system --gid 10001 takhin \
    && useradd --system --uid 10001 --gid takhin --no-create-home --home-dir /data --shell /usr/sbin/nologin takhin \
    && install -d -o takhin -g takhin -m 0700 /data
COPY --from=build /opt/takhin /opt/takhin
ENV PATH=/opt/takhin/bin:$PATH \
    TAKHIN_DATA_DIR=/data
USER takhin
WORKDIR /data
VOLUME /data
# The fast front's is 9093: --fast-listen 0.0.0.0:9093, as without it only the container itself reaches it.
EXPOSE 9092 9093
STOPSIGNAL SIGTERM
# Where the broker wants TLS, TAKHIN_TLS_CA tells the check whom to trust, and TAKHIN_TLS_SERVER_NAME a name that its
# certificate bears, when that is not localhost.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["takhin", "health", "--broker", "localhost:9092", "--timeout", "3"]
# Other machines are served with TLS and authentication, or with --insecure: neither is chosen here.
ENTRYPOINT ["takhin-server"]
