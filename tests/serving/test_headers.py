"""Headers that a server, not its caller, has to say, or that come twice; and long addresses."""

import json
import socket
from urllib.parse import quote

import pytest

CHUNKS = ["1c", '{"id": "r1", "label": "one"}', "0", "", ""]
"""The body of a registration."""


def answer_to(server, *lines, body=("",)):
    """What the server answers to a call with these lines: its head and its body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", *body]).encode())
        received = b""
        while more := connection.recv(65536):
            received += more
    head, _, body = received.decode().partition("\r\n\r\n")
    return head, body


def test_a_caller_does_not_say_below_which_path_it_is_served(server):
    lines = ("GET /evil/livez HTTP/1.1", "Host: 127.0.0.1", "SCRIPT_NAME: /evil")
    head, _ = answer_to(server, *lines)
    assert head.startswith(("HTTP/1.1 404", "HTTP/1.1 400"))


def test_two_principals_are_none(server):
    lines = ("Electric-Principal: user:alice", "Electric-Principal: user:bob")
    head, body = answer_to(server, "GET /_electric/runners HTTP/1.1", "Host: 127.0.0.1", *lines)
    assert head.startswith("HTTP/1.1 401")
    assert "more than once" in body


@pytest.mark.parametrize("path", ["/_electric/runners", "/livez"])
def test_a_request_names_its_host(server, path):
    head, body = answer_to(server, f"GET {path} HTTP/1.1")
    assert head.startswith("HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "INVALID_REQUEST"
    head, _ = answer_to(server, f"GET {path} HTTP/1.0")  # which knows none
    assert head.startswith("HTTP/1.0 200")


@pytest.mark.parametrize(
    "codings",
    [["gzip, chunked"], ["gzip", "chunked"], ["identity, chunked"], ["Deflate,chunked"]],
)
def test_a_body_that_is_coded_is_not_taken_for_a_plain_one(server, codings):
    head, body = answer_to(
        server,
        "POST /_electric/runners HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        *(f"Transfer-Encoding: {each}" for each in codings),
        body=CHUNKS,
    )
    assert head.startswith("HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "INVALID_REQUEST"
    assert server.client(None).get("/_electric/runners").body == []


def test_chunked_is_written_in_any_case(server):
    head, _ = answer_to(
        server,
        "POST /_electric/runners HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        "Transfer-Encoding: Chunked",
        body=CHUNKS,
    )
    assert head.startswith("HTTP/1.1 201")


def test_the_longest_id_fits_into_an_address(server):
    alice = server.client()
    alice.make_entity(runner_id=None)
    path = alice.share(quote("\N{GRINNING FACE}" * 512))
    event = {"type": "state:x", "key": "k", "value": {}, "headers": {"operation": "insert"}}
    assert alice.post(path, event).status == 204
    assert len(alice.get(f"{path}?offset=-1").body) == 1
