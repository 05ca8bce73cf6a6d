"""A store of buckets on loopback: an emulator of Google Cloud Storage, and a proxy with faults.

The emulator does not know preconditions (ifGenerationMatch): the proxy checks them.
"""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

BUCKET = "bucket"
KINDS = (
    "none",
    "status",  # answer with `value` instead
    "slow",  # answer after `value` seconds
    "cut upload",  # close the connection after half of the body
    "stall upload",  # read no more than half of the body for `value` seconds
    "cut download",  # close it after half of the answer
    "shorten download",  # half of the answer, as if it were all
    "wrong byte up",
    "wrong byte down",
    "lose answer",  # carry it out, then close the connection
)


@dataclass
class Fault:
    kind: str
    request: str = ""  # regular expression on "METHOD PATH?QUERY"
    times: int = 1
    value: float = 0


class Store:
    """A running emulator behind a running proxy. `environment` is what its clients need."""

    def __init__(self, folder):
        self._folder, self._port = folder, free_port()
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD PATH?QUERY"
        self.mutex = threading.Lock()
        self.start()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "NO_GCE_CHECK": "true",
        }

    def start(self):
        program = [sys.executable, "-m", "gcp_storage_emulator", f"--data-dir={self._folder}"]
        flags = ["-q", "-H=127.0.0.1", f"--port={self._port}", f"--default-bucket={BUCKET}"]
        self._emulator = subprocess.Popen([*program, "start", *flags])
        while self._emulator.poll() is None:
            try:
                self.ask("GET", "/")
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the emulator does not start")

    def stop(self):
        """Stops the emulator, between two requests; `start` goes on with what it has."""
        with self.mutex:
            self._emulator.terminate()
            self._emulator.wait()

    def close(self):
        self._proxy.shutdown()
        self._proxy.server_close()
        self.stop()

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, body) of the emulator's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def take_fault(self, request):
        with self.mutex:
            for fault in self.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return Fault("none")

    def generation(self, bucket, name):
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        status, _, body = self.ask("GET", path)
        return json.loads(body)["generation"] if status == 200 else "0"


def handler(store):
    class Handler(BaseHTTPRequestHandler):
        def handle_one(self):
            request = f"{self.command} {self.path}"
            store.requests.append(request)
            fault = store.take_fault(request)
            assert fault.kind in KINDS
            length = int(self.headers.get("Content-Length", 0))
            if fault.kind in ("cut upload", "stall upload"):
                self.rfile.read(length // 2)
                time.sleep(fault.value)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault.kind == "status":
                self.answer(int(fault.value), [], error(fault.value))
                return
            if fault.kind == "slow":
                time.sleep(fault.value)
            if fault.kind == "wrong byte up":
                body = flipped(body)
            try:
                status, headers, content = self.forward(body)
            except OSError:  # the emulator is stopped
                self.close_connection = True
                return
            if fault.kind == "lose answer":
                self.close_connection = True
                return
            if fault.kind == "wrong byte down":
                content = flipped(content)
            if fault.kind == "shorten download":
                content = content[: len(content) // 2]
            self.answer(status, headers, content, cut=fault.kind == "cut download")

        def forward(self, body):
            kept = {
                k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")
            }
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            with store.mutex:
                if wanted := query.get("ifGenerationMatch"):
                    bucket, _, name = parts.path.partition("/b/")[2].partition("/o")
                    name = query["name"][0] if "name" in query else unquote(name[1:])
                    if store.generation(bucket, name) != wanted[0]:
                        return 412, [], error(412)
                return store.ask(self.command, self.path, body, kept)

        def answer(self, status, headers, content, cut=False):
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one

        def log_message(self, *_):
            pass

    return Handler


def error(status):
    return json.dumps({"error": {"code": int(status), "message": "injected"}}).encode()


def flipped(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 1
    return bytes(data)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
