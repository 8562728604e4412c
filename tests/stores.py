"""An S3 server on this machine, and a proxy before it that can break connections."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

BUCKET = "footage"
DENIED = "inbox/denied.mp4"
KEY, SECRET = "KEYOFTHEOWNER0000000", "secret-of-the-owner"


class Store:
    """A bucket on moto's server, which clients reach through a `Gate`."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.gate = Gate(self.port)
        owner = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self._url = f"http://127.0.0.1:{self.port}"
        urllib.request.urlopen(f"{self._url}/moto-api/reset", b"").close()  # servers of one process share their state
        self._s3: Any = boto3.client("s3", endpoint_url=self._url, **owner)
        self._iam: Any = boto3.client("iam", endpoint_url=self._url, **owner)
        self._s3.create_bucket(Bucket=BUCKET)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, key: str, data: bytes) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=key, Body=data)

    def put_files(self, folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            self.put(f"{prefix}/{path.name}", path.read_bytes())

    def delete(self, key: str) -> None:
        self._s3.delete_object(Bucket=BUCKET, Key=key)

    @contextmanager
    def guest(self) -> Iterator[dict[str, str]]:
        """Check rights from here on; yield the environment of a user who may read all of the bucket but `DENIED`."""
        bucket = f"arn:aws:s3:::{BUCKET}"
        statements = [
            {"Effect": "Allow", "Action": "s3:*", "Resource": [bucket, f"{bucket}/*"]},
            {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"{bucket}/{DENIED}"},
        ]
        self._iam.create_user(UserName="guest")
        self._iam.put_user_policy(
            UserName="guest",
            PolicyName="reads",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
        )
        key = self._iam.create_access_key(UserName="guest")["AccessKey"]
        self._check_rights_after("0")
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._check_rights_after("inf")

    def _check_rights_after(self, num_requests: str) -> None:
        url, data = f"{self._url}/moto-api/reset-auth", num_requests.encode()
        request = urllib.request.Request(url, data, {"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        self.gate.close()
        self._server.stop()


class Gate:
    """A TCP proxy on this machine that lets a number of bytes through and then breaks all connections."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._num_left: float = float("inf")
        self.num_refused = 0
        self._opens_after = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, num_bytes: int, *, num_refusals: float = float("inf")) -> None:
        """Break connections after the server has sent this many more bytes, and refuse this many new ones."""
        self.num_refused, self._opens_after, self._num_left = 0, num_refusals, num_bytes

    def open(self) -> None:
        """Let everything through."""
        self._num_left = float("inf")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._num_left <= 0:
                    self.num_refused += 1
                    if self.num_refused >= self._opens_after:
                        self.open()
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._send, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(4096):
                if self._num_left <= 0:
                    break
                client.sendall(data)
                self._num_left -= len(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def running_store() -> Iterator[Store]:
    """Run a server, and set the variables that lead to it."""
    from dfscan import objects

    store = Store()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        objects._file_system.cache_clear()
        yield store
        objects._file_system.cache_clear()
    store.close()
