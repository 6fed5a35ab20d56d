"""A server on loopback that speaks enough of W&B's protocol to track a run, until it is told to fail; and a reader."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class WandbServer:
    """Answers, or behaves as `how` says: `hole` accepts and never answers, `error` says 500, `reset` hangs up."""

    def __init__(self, how: str = "answers") -> None:
        self.how = how
        self.rows: list[dict[str, Any]] = []
        """The history that runs have sent."""
        self.queries: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                if self.path.endswith("file_stream"):
                    self._answer(outer.stream(body))
                else:
                    self._answer(outer.graphql(body))

            do_PUT = do_POST

            def _answer(self, document: dict[str, Any]) -> None:
                if outer.how == "hole":
                    while outer.how == "hole":
                        time.sleep(0.05)
                    self.close_connection = True
                    return
                if outer.how == "reset":
                    self.close_connection = True
                    return
                content = json.dumps(document).encode()
                self.send_response(500 if outer.how == "error" else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that hang up are what this is about

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.how = "reset"
        self._server.shutdown()
        self._server.server_close()

    def stream(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.how == "answers":
            history = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows += [json.loads(line) for line in history]
        return {"exitcode": None, "limits": {}}

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        query, given = body.get("query", ""), body.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.queries.append(name)
        if name == "UpsertBucket":
            project = {"id": "cHJvamVjdA==", "name": given.get("project"), "entity": {"id": "ZQ==", "name": "ann"}}
            bucket = {
                "id": "YnVja2V0", "name": given.get("name"), "displayName": given.get("displayName"),
                "project": project,
                "sweepName": None, "config": "{}", "historyLineCount": 0, "description": "", "tags": [], "notes": "",
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "viewer" in query:
            viewer = {"id": "dQ==", "entity": "ann", "username": "ann", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}}}}
        if name == "RunResumeStatus":
            return {"data": {"model": None}}
        if name == "CreateRunFiles":  # W&B's process takes an answer without this part for the end of the world
            return {"data": {"createRunFiles": {"runID": "YnVja2V0", "uploadHeaders": [], "files": []}}}
        return {"data": {}}


def read_wandb(folder: Path) -> Iterator[pb.Record]:
    """The records of the file that W&B keeps of a run, in the format of a LevelDB log, parsed by W&B's own classes.

    A part that was torn, or not all of it, raises.
    """
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position < len(data):
        room = BLOCK - position % BLOCK
        if room < HEADER:
            position += room
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        chunk = data[position + HEADER : position + HEADER + size]
        assert len(chunk) == size and kind in (FULL, FIRST, MIDDLE, LAST)
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            yield record
        position += HEADER + size


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that were logged, as far as they are in the file."""
    rows = []
    for record in read_wandb(folder):
        if record.WhichOneof("record_type") == "history":
            rows.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
    return rows
