#!/bin/sh
# Becomes PgBouncer in compose.yaml: what the recipe leaves to the reader is the role's PULLWAKE_PASSWORD, and where
# PostgreSQL is. Both files are written to the working directory.
set -eu
umask 077
printf '"pullwake" "%s"\n' "$PULLWAKE_PASSWORD" >userlist.txt
sed s/postgres\\.example/postgres/ "$(dirname "$0")/pgbouncer.ini" >own.ini
exec pgbouncer own.ini
