"""The server's version: pyproject.toml, the OpenAPI document and /metrics name the same."""

VERSION = "0.1.0"
