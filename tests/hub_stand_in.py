"""A stand-in for the Hugging Face hub: its HTTP interface on loopback, as far as we use it."""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_test"


class Hub:
    """`repos` holds {OWNER/NAME: {revision: {file: content}}}; every change is a new commit.

    failing: files that the hub does not send. damaged: files whose content differs from their
    checksum. gated: repositories that ask for a token. requests: the paths asked for. defects:
    exceptions of the stand-in itself.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.damaged: set[str] = set()
        self.failing: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.defects: list[BaseException | None] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": self}))
        self.server.handle_error = lambda *_: self.defects.append(sys.exc_info()[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        commits = self.repos.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[commit] = {**commits.get("main", {}), **files}
        commits["main"] = commits[commit]
        return commit

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.requests.append(self.path)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            return self.file(*found.groups())
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+).*", self.path):
            files = self.hub.repos[found[1]][found[2]]
            facts = {"type": "file", "oid": "0" * 40, "size": 1}
            return self.answer([{"path": name, **facts} for name in files])
        return self.refuse(404, "RepoNotFound")

    def file(self, repo, revision, name):
        commits = self.hub.repos.get(repo)
        if commits is None:
            return self.refuse(401, "RepoNotFound")
        if repo in self.hub.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse(403, "GatedRepo")
        if revision not in commits:
            return self.refuse(404, "RevisionNotFound")
        if name in self.hub.failing:
            return self.refuse(418, "Failed")  # after others the client tries again for long
        commit = {"X-Repo-Commit": self.sha(repo, revision)}
        if name not in commits[revision]:
            return self.refuse(404, "EntryNotFound", commit)
        content = commits[revision][name]
        etag = hashlib.sha256(content).hexdigest()
        if not name.endswith(".safetensors"):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if name in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        return self.send(200, content, commit | {"ETag": f'"{etag}"'})

    def sha(self, repo, revision):
        commits = self.hub.repos[repo]
        return next(k for k, v in commits.items() if v is commits[revision] and k != "main")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(self.path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse(401, None)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            self.hub.repos.setdefault(repo, {})
            return self.answer({"url": f"{self.hub.endpoint}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/.*", self.path).groups()
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.answer({"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.hub.commit(repo, files)
        url = f"{self.hub.endpoint}/{repo}/commit/{commit}"
        return self.answer({"success": True, "commitUrl": url, "commitOid": commit})

    def answer(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status, code, headers=()):
        self.send(status, b"", dict(headers) | ({"X-Error-Code": code} if code else {}))

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
