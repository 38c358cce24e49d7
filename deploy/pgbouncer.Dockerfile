# PgBouncer for compose.yaml, by deploy/pgbouncer.ini. The image is compose.yaml's PostgreSQL, which has the packages'
# archive and pg_isready.
FROM postgres:18@sha256:3a82e1f56c8f0f5616a11103ac3d47e632c3938698946a7ad26da0df1334744a
# The archive keeps no version but the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends pgbouncer \
    && rm -rf /var/lib/apt/lists/*
COPY pgbouncer.ini pgbouncer.sh /etc/pullwake/
# The image's postgres.
USER 999
WORKDIR /tmp
ENTRYPOINT ["/bin/sh", "/etc/pullwake/pgbouncer.sh"]
