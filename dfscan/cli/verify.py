"""The ``dfscan verify`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfscan.cli.guard import guarded, start_logging


@guarded
def verify(
    bundle: Annotated[Path, typer.Argument(help="Zip file from `dfscan bundle`.", metavar="BUNDLE")],
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the original videos. They are compared with the report.",
            show_default=False,
            metavar="DIR",
        ),
    ] = None,
    allowed_signers: Annotated[
        Path | None,
        typer.Option(
            help="Signers that you trust, as in the ALLOWED SIGNERS section of `man ssh-keygen`. A bundle without a "
            "signature by one of them then counts as a difference.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Check that a bundle, and the original videos, are unchanged.

    Compares every file in the bundle with its checksum, checks the signature, and names each difference. Unpacks
    nothing.

    Examples:

    \b
      dfscan verify case.zip
      dfscan verify case.zip --videos ./videos
      dfscan verify case.zip --allowed-signers lab-signers --videos /

    Exit codes:

    \b
      0    everything that was checked agrees
      1    at least one difference
      2    usage error, or the file is not a bundle, is damaged, or is refused as harmful
    """
    from dfscan.bundle.verify import verify_bundle
    from dfscan.text import printable

    start_logging()
    found = verify_bundle(bundle, videos=videos, allowed_signers=allowed_signers)
    for difference in found.differences:
        typer.echo(printable(f"difference: {difference}"))
    num = found.num_differences
    if num > len(found.differences):
        typer.echo(f"difference: {num - len(found.differences)} more")
    typer.echo(f"files: {found.num_files} compared with their checksums")
    typer.echo(f"signature: {found.signature}")
    typer.echo(f"original videos: {found.originals}")
    typer.echo(f"result: {num} difference{'' if num == 1 else 's'}" if num else "result: no differences")
    raise typer.Exit(int(bool(num)))
