# Caddy for compose.yaml, by deploy/Caddyfile. The image is the server's own, of ../Dockerfile, which has the packages'
# archive.
FROM python:3.13-slim@sha256:6771159cd4fa5d9bba1258caf0b82e6b73458c694d178ad97c5e925c2d0e1a91
# The archive keeps no version but the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends caddy \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /data
COPY Caddyfile /etc/pullwake/
# Certificates are kept, where it has a name to get them for.
ENV XDG_DATA_HOME=/data \
    XDG_CONFIG_HOME=/tmp
USER 10001
VOLUME /data
ENTRYPOINT ["caddy", "run", "--config", "/etc/pullwake/Caddyfile", "--adapter", "caddyfile"]
