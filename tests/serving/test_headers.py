"""Headers that a server, not its caller, has to say, or that come twice; and long addresses."""

import socket
from urllib.parse import quote


def answer_to(server, *lines):
    """What the server answers to a GET with these lines: its head and its body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
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


def test_the_longest_id_fits_into_an_address(server):
    alice = server.client()
    alice.make_entity(runner_id=None)
    path = alice.share(quote("\N{GRINNING FACE}" * 512))
    event = {"type": "state:x", "key": "k", "value": {}, "headers": {"operation": "insert"}}
    assert alice.post(path, event).status == 204
    assert len(alice.get(f"{path}?offset=-1").body) == 1
