"""Signatures of OpenSSH (``ssh-keygen -Y``) over the list of checksums of a bundle."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfscan.errors import ConfigError
from dfscan.files import writing
from dfscan.text import printable

SIGNATURE_NAMESPACE = "dfscan"
"""Purpose of the signatures, so that one made for something else, such as a commit, is not accepted."""


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """What is known of a signature."""

    is_good: bool
    """True if the signature belongs to the data and, where signers were named, was made by one of them."""
    text: str
    """The finding."""


def sign(data: bytes, key: Path) -> bytes:
    """Return an armoured signature.

    Args:
        data: what to sign.
        key: private key, or public key whose private part an agent holds. A passphrase is asked for on the terminal.

    Raises:
        ConfigError: ssh-keygen is missing or cannot sign with this key.
    """
    if not key.is_file():
        raise ConfigError(f"--sign {key}: no such file; name an SSH key, such as ~/.ssh/id_ed25519")
    done = _run(["-Y", "sign", "-q", "-n", SIGNATURE_NAMESPACE, "-f", str(key)], data)
    if done.returncode or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise ConfigError(
            f"--sign {key}: ssh-keygen cannot sign with it ({_last_line(done.stderr)}); check the key. If it has a "
            "passphrase and there is no terminal, load it with ssh-add and name its .pub file"
        )
    return done.stdout


def check_signature(data: bytes, signature: bytes, allowed_signers: Path | None) -> SignatureCheck:
    """Check a signature over `data`.

    Args:
        data: what was signed.
        signature: as from `sign`.
        allowed_signers: file of trusted signers in the format of ``ssh-keygen(1)``; None only checks that the
            signature belongs to the data.

    Raises:
        ConfigError: ssh-keygen is missing.
        OutputError: no temporary file can be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "signature")
        with writing(file):
            file.write_bytes(signature)
        common = ["-n", SIGNATURE_NAMESPACE, "-s", str(file)]
        whole = _run(["-Y", "check-novalidate", *common], data)
        if whole.returncode:
            return SignatureCheck(False, f"invalid ({_last_line(whole.stderr or whole.stdout)})")
        key = _last_line(whole.stdout).rpartition(" with ")[2]
        if allowed_signers is None:
            return SignatureCheck(True, f"valid, made with {key}. The signer is not checked; give --allowed-signers")
        found = _run(["-Y", "find-principals", "-s", str(file), "-f", str(allowed_signers)], b"")
        for name in found.stdout.decode(errors="backslashreplace").splitlines():
            if not _run(["-Y", "verify", "-f", str(allowed_signers), "-I", name, *common], data).returncode:
                return SignatureCheck(True, f"good, by {printable(name)} with {key}")
    return SignatureCheck(False, f"made with {key}, which {allowed_signers} does not allow")


def can_check() -> bool:
    """Return True if the program that checks signatures is installed."""
    return shutil.which("ssh-keygen") is not None


def _run(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError("signatures need ssh-keygen, which is not installed: install OpenSSH 8.2 or newer")
    return subprocess.run([program, *arguments], input=data, capture_output=True, check=False)


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="backslashreplace").strip().splitlines()
    return printable(lines[-1]) if lines else "no message"
