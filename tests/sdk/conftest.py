"""Tests of the Python SDK against the real server. Its own tests are in sdk/python/tests."""

from asynctests import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
