"""A web server with byte ranges for the tests, as a process of its own: `python range_server.py FOLDER [CERTIFICATE]`.

With a file of a certificate and its key it speaks TLS. It is also a proxy, which serves the paths of its own folder for
any host and tunnels to any port of this machine; its log then tells what was asked for.

It prints its port and serves the folder until its standard input ends. `POST /faults` with a JSON list makes the next
GETs fail in the ways listed, one entry each; `GET /log` tells the requests so far.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(sys.argv[1])
STATE: dict[str, Any] = {"faults": [], "log": [], "etag": "v1"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        STATE[self.path.removeprefix("/")] = body
        self.answer(200, b"")

    def do_CONNECT(self) -> None:
        STATE["log"].append({"path": self.path, "auth": self.headers.get("Proxy-Authorization")})
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as target:
            self.answer(200, b"")
            back = threading.Thread(target=pass_on, args=(target, self.connection))
            back.start()
            pass_on(self.connection, target)
            back.join()
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/log":
            return self.answer(200, json.dumps(STATE["log"]).encode())
        wanted = self.headers.get("Range", "")
        STATE["log"].append(
            {
                "path": parts.path,
                "host": parts.netloc,
                "query": parts.query,
                "range": wanted,
                "auth": self.headers.get("Authorization"),
                "proxy_auth": self.headers.get("Proxy-Authorization"),
            }
        )
        fault = STATE["faults"].pop(0) if STATE["faults"] else {}
        if "status" in fault:
            return self.answer(fault["status"], b"<html>sorry</html>", **fault.get("headers", {}))
        file = ROOT / unquote(parts.path).lstrip("/")
        if not file.is_file():
            return self.answer(404, b"<html>not here</html>")
        size = file.stat().st_size
        if not wanted or fault.get("do") == "whole":
            return self.answer(200, file.read_bytes())
        if not size:
            return self.answer(416, b"", **{"Content-Range": "bytes */0"})
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        last = min(last, size - 1)
        with file.open("rb") as opened:
            opened.seek(first)
            body = opened.read(last - first + 1)
        self.part(body, first, size, str(fault.get("do", "")))

    def part(self, body: bytes, first: int, size: int, fault: str) -> None:
        last = first + len(body) - 1
        shift = 1 if fault == "other range" else 0
        total = size + (7 if fault == "other size" else 0)
        headers = {
            "Content-Range": f"bytes {first + shift}-{last + shift}/{total}",
            "ETag": f'"{STATE["etag"]}-{size}"',
        }
        length = len(body) + (5 if fault == "other length" else 0)
        if fault.startswith("no length"):
            self.close_connection = True
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = str(length)
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "drip headers":
            return self.drip(b"X-Slow: " + b"y" * 10_000)
        self.end_headers()
        if fault == "drip":
            return self.drip(body)
        half = len(body) // 2
        if fault in ("reset", "cut", "no length, cut", "stall"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.close_connection = True
            if fault == "stall":
                time.sleep(20)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return None
        self.wfile.write(body)
        return None

    def drip(self, body: bytes) -> None:
        self.close_connection = True
        try:
            for number in range(len(body)):
                self.wfile.write(body[number : number + 1])
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
