"""A server that speaks Azure's protocol on this machine, where one is installed."""

import base64
import contextlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate

from tests.support.buckets import ASK_SECONDS, BUCKET

AZURE = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
"""The account that every emulator of Azure has, and its published key."""
NEWLINE = "\n"


def azurite() -> str | None:
    """The command of an emulator of Azure's service, if there is one: `npm install azurite`."""
    return os.environ.get("PENSTOCK_TEST_AZURITE") or shutil.which("azurite-blob")


@contextlib.contextmanager
def azure_server(command: str) -> Iterator[int]:
    """Serve an empty container of Azure's protocol; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    process = subprocess.Popen(
        [command, *options, "--blobPort", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(ASK_SECONDS * 5):
            with contextlib.suppress(ConnectionError):
                _make_container(port)
                break
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _make_container(port: int) -> None:
    account, secret = AZURE
    date = formatdate(usegmt=True)
    signed = (
        f"PUT{NEWLINE * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n"
        f"/{account}/{account}/{BUCKET}\nrestype:container"
    )
    code = base64.b64encode(
        hmac.digest(base64.b64decode(secret), signed.encode(), "sha256")
    ).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {account}:{code}",
        "Content-Length": "0",
    }
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("PUT", f"/{account}/{BUCKET}?restype=container", headers=headers)
        assert connection.getresponse().status == 201


def azure_environment(port: int) -> dict[str, str]:
    """What tells the program where that server is and who asks."""
    account, secret = AZURE
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": account,
        "AZURE_STORAGE_ACCOUNT_KEY": secret,
        "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{account}",
        "AZURE_ALLOW_HTTP": "true",
    }
