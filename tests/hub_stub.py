"""The part of the Hugging Face hub's HTTP API that fetching and publishing a model needs, on loopback."""

import base64
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit


class Hub(http.server.ThreadingHTTPServer):
    """Models in memory: {name: {branch: {file: bytes}}}. With a token, requests without it are refused."""

    def __init__(self, token=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.token, self.seen = {}, token, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def files(self, name, revision):
        """-> (files of a branch or commit, its commit)"""
        for branch, files in self.models[name].items():
            if revision in (branch, commit_of(files)):
                return files, commit_of(files)
        raise KeyError(revision)


def commit_of(files):
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value=None, status=200, data=None, **headers):
        data = json.dumps(value).encode() if data is None else data
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self):
        path, length = unquote(urlsplit(self.path).path), int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.seen.append(f"{self.command} {path}")
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer({"error": "Invalid credentials"}, 401, X_Error_Code="RepoNotFound")
        try:
            return self.route(path, body)
        except KeyError as missing:
            code = "RepoNotFound" if missing.args[0] not in ("main", "v2") else "RevisionNotFound"
            return self.answer({"error": f"there is no {missing}"}, 404, X_Error_Code=code)

    do_GET = do_POST = do_HEAD = handle_request

    def route(self, path, body):
        hub = self.server
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            known = name in hub.models
            hub.models.setdefault(name, {"main": {}})
            return self.answer({"url": f"{hub.url}/{name}", "name": name}, 409 if known else 200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            hub.models[found[1]].setdefault(found[2], dict(hub.models[found[1]]["main"]))
            return self.answer({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = hub.models[found[1]][found[2]]
            for line in map(json.loads, body.decode().strip().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = commit_of(files)
            return self.answer({"commitOid": commit, "commitUrl": f"{hub.url}/{found[1]}/commit/{commit}"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files, _ = hub.files(found[1], found[2])
            return self.answer(
                [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in files.items()
                ]
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            files, commit = hub.files(found[1], found[2] or "main")
            about = {"id": found[1], "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
            return self.answer(about | {"siblings": [{"rfilename": name} for name in files]})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files, commit = hub.files(found[1], found[2])
            data = files[found[3]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data=data, X_Repo_Commit=commit, ETag=etag, Content_Type="application/octet-stream")
        raise KeyError(path)
