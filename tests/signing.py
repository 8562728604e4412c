"""Sign files with C2PA manifests and with certificates that are made at run time."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TYPES = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
CREATED: dict[str, object] = {"action": "c2pa.created", "digitalSourceType": f"{SOURCE_TYPE}digitalCapture"}
BEGIN, END = datetime(2025, 1, 1), datetime(2125, 1, 1)


@dataclass(frozen=True)
class Identity:
    """An authority and a signer that it certifies."""

    root_pem: str
    signer_pem: str
    key_pem: bytes


@functools.cache
def identity(name: str = "Signer") -> Identity:
    """Make an authority and a signer of this name."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, signer_name = _name(f"Authority of {name}"), _name(name)
    root = (
        _certificate(root_name, root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    signer = (
        _certificate(signer_name, root_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Identity(_pem(root), _pem(signer), key.private_bytes(serialization.Encoding.PEM, *form))


def _name(name: str) -> x509.Name:
    parts = (NameOID.ORGANIZATION_NAME, "Test Organisation"), (NameOID.COMMON_NAME, name)
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


def _certificate(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(END)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def sign(
    source: Path,
    target: Path,
    *,
    signer: Identity | None = None,
    actions: Sequence[dict[str, object]] = (CREATED,),
    ingredient: Path | None = None,
    remote_url: str | None = None,
) -> Path:
    """Copy a file and sign the copy; its suffix gives the type.

    Args:
        source: file to sign.
        target: signed copy.
        signer: who signs; default: `identity()`.
        actions: what the manifest says was done.
        ingredient: file that the content was made from.
        remote_url: names a manifest that is stored there, instead of embedding it.
    """
    signer = signer or identity()
    chain = (signer.signer_pem + signer.root_pem).encode()
    info = c2pa.C2paSignerInfo(b"es256", chain, signer.key_pem, None)
    context = c2pa.Context.from_dict(
        {"verify": {"verify_after_sign": False}, "builder": {"thumbnail": {"enabled": False}}}
    )
    manifest = {
        "claim_generator_info": [{"name": "Test Camera", "version": "1.0"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": list(actions)}}],
    }
    builder = c2pa.Builder(json.dumps(manifest), context=context)
    if ingredient:
        with ingredient.open("rb") as file:
            relation = json.dumps({"title": ingredient.name, "relationship": "componentOf"})
            builder.add_ingredient(relation, TYPES[ingredient.suffix], file)
    if remote_url:
        builder.set_no_embed()
        builder.set_remote_url(remote_url)
    with source.open("rb") as file, target.open("w+b") as signed:
        builder.sign(c2pa.Signer.from_info(info), TYPES[target.suffix], file, signed)
    return target
