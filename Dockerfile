# docker build -t pullwake . && docker run -p 8000:8000 -e SECRET_KEY=… -v pullwake:/app/var pullwake
# Settings are environment variables; the README lists them. compose.yaml adds a PostgreSQL.

# Of the two Pythons that the tests run on, 3.11 with Django 5.2 and 3.13 with Django 6.1, the newer.
FROM python:3.13-slim AS packages
RUN python -m venv /venv
COPY requirements/base.txt .
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r base.txt

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /app pullwake \
    && install -d -o pullwake -g pullwake /app /app/var
COPY --from=packages /venv /venv
WORKDIR /app
# .dockerignore names what belongs in it.
COPY . .
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PULLWAKE_MODE=production \
    HOST=0.0.0.0 \
    PORT=8000
USER pullwake
# The SQLite database, unless DATABASE_URL names another.
VOLUME /app/var
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/livez', timeout=4)"]
CMD ["python", "manage.py", "serve"]
