# docker build -t pullwake . && docker run -p 8000:8000 -e SECRET_KEY=… -v pullwake:/app/var pullwake
# Settings are environment variables; the README lists them. compose.yaml has two servers, Caddy, PgBouncer and PostgreSQL.

# Of the two Pythons that the tests run on, 3.11 with Django 5.2 and 3.13 with Django 6.1, the newer.
# The digest is of that image and no other; `docker buildx imagetools inspect python:3.13-slim` has the newest.
ARG PYTHON=python:3.13-slim@sha256:6771159cd4fa5d9bba1258caf0b82e6b73458c694d178ad97c5e925c2d0e1a91

FROM ${PYTHON} AS packages
WORKDIR /build
# Besides base, what is optional: --build-arg EXTRAS="observability sso" is with OpenTelemetry and Sentry, and with
# operators' login at a provider and the second factor.
ARG EXTRAS=
COPY requirements/*.txt ./
RUN python -m venv /venv && for name in base ${EXTRAS}; do \
        /venv/bin/pip install --no-cache-dir --require-hashes -r "$name.txt" || exit; \
    done

FROM ${PYTHON}
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin pullwake \
    && install -d -o pullwake -g pullwake /app /app/var
COPY --from=packages /venv /venv
WORKDIR /app
# .dockerignore names what belongs in it. It is root's, and the server cannot write there: it runs with
# `docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges`, as compose.yaml has it.
COPY . .
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PULLWAKE_MODE=production \
    HOST=0.0.0.0 \
    PORT=8000
USER 10001
# The SQLite database, unless DATABASE_URL names another.
VOLUME /app/var
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/livez', timeout=4)"]
CMD ["python", "manage.py", "serve"]
