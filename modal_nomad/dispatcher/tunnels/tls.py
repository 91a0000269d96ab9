"""The certificate that tunnels show where the operators gave none."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from pathlib import Path

from modal_nomad.dispatcher.gateway.certificates import Certificate, Certificates

_DAYS = 3650
_FILE = "tunnels.pem"
"""Certificate and key of a home that has been given none; tools on this machine may trust the file."""


def own_certificates(home: Path, domain: str = "") -> Certificates:
    """Return what a dispatcher shows that was given no certificate: one of its home, signed by itself.

    Args:
        home: the dispatcher's.
        domain: whose host names it is for as well, when it is made.
    """
    data = own_certificate(home, domain).read_bytes()
    certificates = Certificates()
    certificates.put("own", Certificate(data, data))
    return certificates


def own_certificate(home: Path, domain: str = "") -> Path:
    """Return a file with a certificate for this machine, which it signed itself, and the key; made once."""
    file = home / _FILE
    if not file.exists():
        new = home / f"{_FILE}.{secrets.token_hex(4)}"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(_self_signed(domain))
        new.replace(file)
    return file


def _self_signed(domain: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modal-nomad tunnels of this machine")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName("*.localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    if domain:
        names += [x509.DNSName(domain), x509.DNSName(f"*.{domain}")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
