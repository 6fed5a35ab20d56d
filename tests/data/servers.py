"""A real S3 protocol server on loopback, in a process of its own, and a proxy in front of it that makes trouble."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

BUCKET = "corpora"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """moto's server: it speaks S3 over HTTP and holds the objects in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["-c", "from moto.server import main; main()", "-p", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                assert self._process.poll() is None, "moto's server ended"
                assert time.monotonic() < give_up, "moto's server does not listen"
                time.sleep(0.05)
        self._client().create_bucket(Bucket=BUCKET)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def upload(self, folder: Path, prefix: str) -> None:
        client = self._client()
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ACL="public-read")

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1")


Fault = Literal["503", "truncated", "slow", "corrupted"]
SLOW_SECONDS = 1.5


class Exchange(BaseHTTPRequestHandler):
    """One request on its way to the server and back."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: otherwise Nagle's algorithm costs 40 ms
    server: Proxy

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self.path)
        if fault == "503":
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        status, headers, body = self._forward(sent)
        if fault == "slow":
            with self.server.held():
                time.sleep(SLOW_SECONDS)
        if fault == "corrupted" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self._answer(status, headers, body, length=len(body) // 2 if fault == "truncated" else None)

    do_PUT = do_POST = do_DELETE = do_GET

    def handle_expect_100(self) -> bool:
        """Answer at once: the client waits with its content for that."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def do_HEAD(self) -> None:
        self._answer(*self._forward())

    def _forward(self, sent: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=10)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body=sent or None, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except OSError:
            return 502, {}, b""
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "content-length", "transfer-encoding", "date", "server"}:
                self.send_header(name, value)
        sent_length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", sent_length)
        self.end_headers()
        self.wfile.write(body[:length])
        if length is not None:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    """Forwards to the server; each request for a path that ends in `suffix` meets the next of `faults`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, upstream: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Exchange)
        self.upstream = upstream
        self.faults: list[Fault | None] = []
        self.suffix = ".tok"
        self.requests: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> Fault | None:
        with self._lock:
            self.requests.append(path)
            return self.faults.pop(0) if self.faults and path.partition("?")[0].endswith(self.suffix) else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Count the answers that are held back at one time."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._lock:
            self._at_once -= 1

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on slow answers


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
