"""A stand-in for the Hugging Face hub: the few addresses that making a repository and committing to it ask for."""

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_standin"


class Hub:
    """Repositories in memory, behind a server on loopback. `refuse` is a status that every request gets instead."""

    def __init__(self):
        self.repositories, self.private, self.requests, self.refuse = {}, {}, [], None
        self._objects = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.requests.append(f"{self.command} {self.path}")
                status, answer = hub.answer(self.command, self.path, self.headers.get("Authorization"), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _handle  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method, path, authorization, body):
        """Status and JSON answer of a request."""
        if self.refuse is not None:
            return self.refuse, {"error": "refused by the test"}
        if method == "PUT" and path.startswith("/objects/"):  # signed addresses take no token
            self._objects[path.removeprefix("/objects/")] = body
            return 200, {}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        for pattern, reply in self._replies().items():
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return reply(body, *match.groups())
        return 404, {"error": "Repository not found"}

    def _replies(self) -> dict[str, Callable]:
        return {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": lambda body: (200, {"warnings": [], "errors": []}),
            r"GET /api/models/(\w+/[\w.-]+)": self._info,
            r"POST /api/models/(\w+/[\w.-]+)/preupload/main": self._preupload,
            r"POST /(\w+/[\w.-]+)\.git/info/lfs/objects/batch": self._batch,
            r"POST /api/models/(\w+/[\w.-]+)/commit/main": self._commit,
        }

    def _create(self, body):
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        self.repositories[name], self.private[name] = {}, wanted.get("visibility") == "private"
        return 200, {"url": f"{self.address}/{name}", "name": name}

    def _info(self, body, name):
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "private": self.private[name], "siblings": [], "tags": [], "downloads": 0, "likes": 0}

    def _preupload(self, body, name):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
        return 200, {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in files]}

    def _batch(self, body, name):
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.address}/objects/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, body, name):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self._objects[value["oid"]]
        return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1", "success": True}
