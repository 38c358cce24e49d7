"""The certificate that gunicorn is given: what is wrong with it is one sentence."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config.serving import certificates
from config.serving.startup import BAD_SETTING, CannotStart
from tests.support import ROOT, free_port


def make(folder: Path, name: str, *, ends_in_days: int) -> ec.EllipticCurvePrivateKey:
    """A certificate of its own, and its key, in two files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wake.example")])
    now = datetime.now(UTC)
    unsigned = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=ends_in_days))
    )
    signed = unsigned.sign(key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    write(key, folder / f"{name}.key", serialization.NoEncryption())
    return key


def write(
    key: ec.EllipticCurvePrivateKey,
    path: Path,
    encryption: serialization.KeySerializationEncryption,
) -> None:
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and keys: good, expired, another's, with a password, and one file of both."""
    made = tmp_path_factory.mktemp("tls")
    key = make(made, "good", ends_in_days=2)
    make(made, "other", ends_in_days=2)
    make(made, "expired", ends_in_days=-1)
    write(key, made / "locked.key", serialization.BestAvailableEncryption(b"x"))
    both = (made / "good.pem").read_text() + (made / "good.key").read_text()
    (made / "both.pem").write_text(both)
    (made / "none.pem").write_text("no certificate")
    return made


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--keyfile good.key", "without a --certfile; give both"),
        ("--certfile good.pem", "good.pem, which holds no key; give it by --keyfile"),
        ("--certfile nowhere.pem --keyfile good.key", "nowhere.pem: No such file or directory;"),
        ("--certfile good.pem --keyfile nowhere.key", "nowhere.key: No such file or directory;"),
        ("--certfile good.pem --keyfile locked.key", "a key with a password, locked.key;"),
        ("--certfile good.pem --keyfile other.key", "other.key, which is not the certificate's;"),
        ("--certfile none.pem --keyfile good.key", "no PEM; both must be PEM files"),
        ("--certfile expired.pem --keyfile expired.key", "which has expired; renew it."),
        ("--certifcate good.pem", "has --certifcate, which gunicorn --help does not list."),
        ("--threads many", "cannot be read: argument --threads: invalid int value: 'many';"),
        ("--certfile 'good.pem", "cannot be read: No closing quotation; gunicorn --help"),
    ],
)
def test_a_certificate_that_nobody_could_use_is_a_sentence(folder, monkeypatch, given, says):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", given)
    with pytest.raises(CannotStart) as refused:
        certificates.require()
    assert says in str(refused.value)
    assert refused.value.status == BAD_SETTING


@pytest.mark.parametrize(
    "given",
    ["", "--threads 2", "--certfile good.pem --keyfile good.key", "--certfile both.pem"],
)
def test_others_are_let_pass(folder, monkeypatch, given):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", given)
    certificates.require()


@pytest.mark.server
def test_the_command_ends_with_it(folder):
    env = {
        **os.environ,
        "PORT": str(free_port()),
        "DATABASE_URL": "sqlite:///:memory:",
        "GUNICORN_CMD_ARGS": f"--certfile {folder}/expired.pem --keyfile {folder}/expired.key",
    }
    command = [sys.executable, "manage.py", "serve"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (BAD_SETTING, "")
    assert done.stderr.startswith("pullwake: GUNICORN_CMD_ARGS has --certfile ")
    assert done.stderr.count("\n") == 1
