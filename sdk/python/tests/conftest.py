"""Tests of the Python runner, without a server, whatever the shell's environment is."""

from __future__ import annotations

import os

from asynctests import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]

for name in list(os.environ):
    if name.startswith("PULLWAKE_"):
        del os.environ[name]
