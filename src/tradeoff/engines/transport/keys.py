"""Certificates for the parties of a session, signed by a private authority made for them."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tradeoff.core.errors import MissingExtra
from tradeoff.engines.transport.errors import ConfigError, KeysExist
from tradeoff.engines.transport.tls import NAME

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_DAY = datetime.timedelta(days=1)
_MOST_DAYS = 100 * 365


def make_keys(
    folder: Path | str, parties: int, *, days: float = 365, start: datetime.datetime | None = None
) -> list[Path]:
    """Make an authority and a certificate for each party: ``ca.pem``, ``ca.key``, ``party-I.pem``,
    ``party-I.key``.

    Keys are P-256, readable by their owner only. Give each party ``ca.pem`` and its own two files; ``ca.key``
    is needed for nothing else and is best moved away.

    Args:
        folder: made if it is not there.
        days: how long the certificates are valid, from ``start`` (default: one hour ago, for clocks that
            are late).

    Returns:
        the files written.

    Raises:
        KeysExist: one of the files is there; nothing was written.
        ConfigError: a number is out of range.
        MissingExtra: the package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise MissingExtra("cryptography", "private") from None
    if parties < 1:
        raise ConfigError(f"keys are made for at least one party, not {parties}")
    if not 0 < days <= _MOST_DAYS:
        raise ConfigError(f"certificates are valid for more than 0 and up to {_MOST_DAYS} days, not {days}")
    folder = Path(folder)
    names = ["ca", *(NAME.format(party) for party in range(parties))]
    paths = [folder / f"{name}{suffix}" for name in names for suffix in (".key", ".pem")]
    there = [path.name for path in paths if path.exists()]
    if there:
        raise KeysExist(f"{folder} holds {', '.join(there)} already; keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    since = start or datetime.datetime.now(datetime.UTC) - _DAY / 24
    maker = _Maker(folder, since, since + days * _DAY)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = maker.certificate("ca", authority_key, "tradeoff session authority", None)
    for name in names[1:]:
        maker.certificate(name, ec.generate_private_key(ec.SECP256R1()), name, (authority, authority_key))
    return paths


class _Maker:
    """Writes keys and certificates that are valid over one span of time."""

    def __init__(self, folder: Path, since: datetime.datetime, until: datetime.datetime) -> None:
        self._folder = folder
        self._since = since
        self._until = until

    def certificate(
        self,
        file: str,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    ) -> x509.Certificate:
        """Write ``file.key`` and ``file.pem``; without an issuer an authority that signs itself."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._since)
            .not_valid_after(self._until)
        )
        for extension, critical in _extensions(key, name, issuer):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write_new(self._folder / f"{file}.key", private, 0o600)
        _write_new(self._folder / f"{file}.pem", certificate.public_bytes(pem), 0o644)
        return certificate


def _extensions(
    key: ec.EllipticCurvePrivateKey, name: str, issuer: tuple[x509.Certificate, Any] | None
) -> list[tuple[x509.ExtensionType, bool]]:
    """What the certificate may be used for; an authority only to sign, a party only to talk."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = issuer is None
    allowed = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
        **allowed,
    )
    signer = issuer[1] if issuer else key
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=authority, path_length=0 if authority else None), True),
        (usage, True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ]
    if not authority:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        extensions.append((x509.ExtendedKeyUsage(purposes), False))
        extensions.append((x509.SubjectAlternativeName([x509.DNSName(name)]), False))
    return extensions


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
