"""An S3-compatible store on this machine: moto's server in its own process, which keeps files in memory.

python -m tests.s3_server     serves on a free port of loopback until it is ended, and prints the port
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

BUCKET = "made-up"

ACCESS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "us-east-1",
    # The AWS SDK must not look for other credentials: on a cloud machine it would wait for them.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""A process needs these in its environment before it opens a storage on the server."""

COUNT = "/how-many-requests"

HAS_MOTO = importlib.util.find_spec("moto") is not None


class S3Server:
    """One server with one bucket.

    Args:
        filled_from: a folder; the bucket starts with its files, under their names.

    Raises:
        RuntimeError: it has not started.
    """

    def __init__(self, filled_from: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server", *([str(filled_from)] if filled_from else [])],
            cwd=ROOT,
            env={**os.environ, **ACCESS},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("moto's server has not started")
        self.port = int(line)

    def storage(self, name: str) -> str:
        """The URL of a study's storage."""
        where = f"endpoint_override=http%3A%2F%2F127.0.0.1%3A{self.port}&region=us-east-1"
        return f"s3://{BUCKET}/{name}?{where}"

    def requests(self) -> int:
        """The number of requests it has answered, without calls of this method."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{COUNT}") as answer:
            return int(answer.read())

    def pause(self) -> None:
        """Stop answering requests; the stored files stay."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def s3_server(filled_from: Path | None = None) -> Iterator[S3Server]:
    server = S3Server(filled_from)
    try:
        yield server
    finally:
        server.close()


def _serve(filled_from: Path | None) -> None:
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").disabled = True
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections stay open, as with S3
    held = s3_backends["123456789012"]["aws"]
    held.create_bucket(BUCKET, "us-east-1")
    if filled_from is not None:
        for path in filled_from.rglob("*"):
            if path.is_file():
                held.put_object(BUCKET, path.relative_to(filled_from).as_posix(), path.read_bytes())
    moto = DomainDispatcherApplication(create_backend_app)
    answered = 0

    def answer(environ: Any, start_response: Any) -> Any:
        nonlocal answered
        if environ["PATH_INFO"] == COUNT:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(answered).encode()]
        answered += 1
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]) if sys.argv[1:] else None)
