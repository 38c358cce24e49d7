"""Whether gunicorn could serve TLS with the certificate that GUNICORN_CMD_ARGS gives it.

gunicorn itself finds out in its workers, which would end and be started again for ever, or ask the
terminal for a password.
"""

import ssl
from argparse import ArgumentError
from pathlib import Path

from gunicorn.config import Config

from config.serving.startup import BAD_SETTING, CannotStart

_EXPIRED, _NOT_YET = 10, 9
"""X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID, of OpenSSL."""


class _Encrypted(Exception):
    """A key asks for a password, which gunicorn would not give."""


def require() -> None:
    """Raise CannotStart for arguments that gunicorn could not use, or nobody their certificate."""
    config = Config()
    parser = config.parser()
    parser.exit_on_error = False
    try:
        given, unknown = parser.parse_known_args(config.get_cmd_args_from_env())
    except (ArgumentError, ValueError) as exc:
        raise _refuse(f"cannot be read: {exc}; gunicorn --help lists what it takes") from None
    if unknown:
        raise _refuse(f"has {unknown[0]}, which gunicorn --help does not list")
    certificate, key = given.certfile, given.keyfile
    if not (certificate or key):
        return
    if not certificate:
        raise _refuse(f"has --keyfile {key} without a --certfile; give both")
    context = _load(certificate, key)
    problem = _problem_of(context, certificate)
    if problem is not None:
        raise _refuse(f"has --certfile {certificate}, {problem}")


def _refuse(problem: str) -> CannotStart:
    return CannotStart(f"GUNICORN_CMD_ARGS {problem}.", BAD_SETTING)


def _load(certificate: str, key: str | None) -> ssl.SSLContext:
    def refuse_password() -> str:
        raise _Encrypted

    for option, path in (("--certfile", certificate), ("--keyfile", key)):
        try:
            if path:
                Path(path).read_bytes()
        except OSError as exc:
            hint = "let this user read it, or name another"
            raise _refuse(f"has {option} {path}: {exc.strerror}; {hint}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, refuse_password)
    except _Encrypted:
        hint = "take the password off with: openssl pkey -in KEY -out PLAIN"
        raise _refuse(f"has a key with a password, {key or certificate}; {hint}") from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            hint = "give the key that the certificate was made for"
            raise _refuse(f"has --keyfile {key}, which is not the certificate's; {hint}") from None
        if not key:
            hint = "give it by --keyfile"
            raise _refuse(f"has --certfile {certificate}, which holds no key; {hint}") from None
        hint = "both must be PEM files, the certificate with its chain"
        raise _refuse(f"has --certfile {certificate} and --keyfile {key}: no PEM; {hint}") from None
    return context


def _problem_of(serving: ssl.SSLContext, certificate: str) -> str | None:
    """What is wrong with the time of a certificate, as a client sees it that trusts this one."""
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    asking.load_verify_locations(certificate)
    theirs, ours = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(theirs, ours)
    server = serving.wrap_bio(ours, theirs, server_side=True)
    try:
        for side in (client, server, client):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code == _EXPIRED:
            return "which has expired; renew it"
        if exc.verify_code == _NOT_YET:
            return "which is not valid yet; look at this machine's clock"
    return None
