"""Connections with deadlines, for peers that send or read too slowly."""

import ctypes
import errno
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from core import unread

SLICE = 64 * 1024
"""Bytes of an answer that the peer has the time for; and those that the system keeps for it."""

HURRIED_S = 1.0
"""Seconds that it has for these at the most, where much is held for peers that do not read."""


class Peer:
    """gevent's socket with deadlines; waiting for a request to begin is gunicorn's ``keepalive``.

    A request that does not arrive in time ends as if its peer had closed: the rest is missing. A
    peer that does not read its answer counts as gone.
    """

    def __init__(self, sock: Any, patience_s: float) -> None:
        self._sock = sock
        self._patience_s = patience_s
        self._deadline: float | None = None
        self._is_late = False
        self.is_waited_for = False
        """Whether the server waits for the rest of a request."""
        self._head = b""
        """Of an answer whose body follows at once: both are sent together."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def idle(self) -> None:
        """The request is answered, and no other has begun."""
        self._deadline = None
        if self._head:  # no body followed: it was asked for by HEAD, or is empty
            with suppress(OSError):
                self.sendall(b"")

    def begin(self) -> None:
        """A request has begun, maybe in what came with the one before it."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience_s

    def recv(self, size: int) -> bytes:
        """The next part of the request; nothing once the peer's time was up."""
        if self._is_late:
            return b""  # where the next request would begin is not known
        if self._deadline is None:
            self._sock.settimeout(None)
            first: bytes = self._sock.recv(size)
            self.begin()
            return first
        self.is_waited_for = True
        try:
            self._sock.settimeout(max(0.001, self._deadline - time.monotonic()))
            more: bytes = self._sock.recv(size)
        except TimeoutError:
            more = b""
        finally:
            self.is_waited_for = False
        if time.monotonic() > self._deadline:
            self._is_late = True
            return b""
        return more

    def sendall(self, data: bytes) -> None:
        """Send; raises ConnectionResetError for a peer that does not read.

        gunicorn sends an answer's head by itself. One that says how long its body is waits for it:
        so most answers are one packet, and one call of the system.
        """
        if not self._head and _is_head_with_length(data):
            self._head = data
            return
        head, self._head = self._head, b""
        if len(data) <= SLICE:
            self._send(head + data)
            return
        view = memoryview(data)
        with unread.held(len(data)):
            # Joined with its head all of it would be held twice.
            self._send(head + data[:SLICE])
            for begin in range(SLICE, len(view), SLICE):
                self._send(view[begin : begin + SLICE])

    def _send(self, data: bytes | memoryview) -> None:
        hurried = unread.is_much()
        self._sock.settimeout(min(self._patience_s, HURRIED_S) if hurried else self._patience_s)
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "The peer does not read.") from None


def _is_head_with_length(data: bytes) -> bool:
    """Whether this is the head of an answer that says how long its body is."""
    is_head = data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n")
    return is_head and b"\r\nContent-Length: " in data


def keep_little(listener: socket.socket) -> None:
    """Let the system buffer only little of what this socket's peers do not read."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SLICE)


_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP's flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all of it
)
"""A filter of packets to a socket that listens, as the kernel of Linux runs it."""


def turn_away(listener: socket.socket) -> None:
    """Let nobody begin to connect to this socket any more; handshakes in progress are completed.

    Closing it would reset connections that are not accepted yet, and under load there always is
    one: a proxy has then sent its request, and must not repeat a POST. A client that gets no answer
    retries after a second, is then refused, and goes to another server. Elsewhere than on Linux it
    is simply closed.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_SYN)
    there = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HP", len(_NO_SYN), ctypes.addressof(there))
    listener.setsockopt(socket.SOL_SOCKET, 26, filter_)  # SO_ATTACH_FILTER


def let_in(listener: socket.socket) -> None:
    """Undo `turn_away` for a socket that stays open: other processes still use it.

    One of several workers stops when gunicorn reloads (SIGHUP), or reduces their number.
    """
    if sys.platform == "linux":
        with suppress(FileNotFoundError):  # nobody is turned away
            listener.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
