-- Run once by the postgres container, when it makes its database: Pullwake's own role and database.
-- The role owns that database, and is no superuser.
\getenv password PULLWAKE_PASSWORD
CREATE ROLE pullwake LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE pullwake OWNER pullwake;
