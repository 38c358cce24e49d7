"""Trace contexts as W3C has them: what is believed, and what is ignored."""

import pytest

from core.tracing import TraceContext

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("header", [GOOD, f" {GOOD}\t", f"00-{TRACE}-{PARENT}-00"])
def test_it_takes_what_is_one(header):
    found = TraceContext.parse(header)
    assert found is not None
    assert found.traceparent == header.strip()


@pytest.mark.parametrize("header", [f"01-{TRACE}-{PARENT}-03", f"cc-{TRACE}-{PARENT}-01-what-ever"])
def test_of_a_later_version_it_takes_what_it_knows(header):
    found = TraceContext.parse(header)
    assert found is not None
    assert found.traceparent == GOOD


@pytest.mark.parametrize(
    "header",
    [
        "",
        "-",
        GOOD.upper(),
        f"{GOOD}-more",
        f"{GOOD},{GOOD}",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"00-{TRACE}-{PARENT}-01\n",
        "\x00" * 55,
    ],
)
def test_it_ignores_what_is_none(header):
    assert TraceContext.parse(header) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", True),
        ("fw529a3039@dt=FfAAAA==x, a=b", False),
        ("a=1, ,b=2", True),
        ("a=1,a=2", False),
        ("A=1", False),
        ("a", False),
        ("a=\x00", False),
        (",".join(f"k{n}=v" for n in range(33)), False),
        ("a=" + "x" * 600, False),
    ],
)
def test_a_tracestate_that_is_none_is_left_out(state, kept):
    found = TraceContext.parse(GOOD, state)
    assert found is not None
    assert found.state == (state if kept else "")
    assert TraceContext.load(found.dump()) == found
