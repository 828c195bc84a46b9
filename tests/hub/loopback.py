"""A server on this machine that speaks as much of the Hub's HTTP API as publishing and loading use.

Commits are whole or not at all, as the Hub's. `fail` makes it answer wrongly, slowly or not at all.
It refuses what the Hub refuses: commits of files that were not uploaded, a wrong parent, bad
metadata, strangers in private repositories.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_LoopbackTokenThatNobodyMaySee0123456789"
LFS_FROM = 4096  # bytes; smaller files travel in the commit


def git_sha(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict = field(default_factory=dict)  # sha -> {path: bytes}
    messages: list = field(default_factory=list)  # of the commits, in order
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)

    def commit(self, branch, files, message):
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{message}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.messages.append(message)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision):
        revision = self.branches.get(revision) or self.tags.get(revision) or revision
        return revision if revision in self.commits else None


@dataclass
class Fault:
    """What `count` of the requests that `pattern` fits get: a status; "cut" (the connection closed
    in the middle of the request), "cut answer" (after all was done), or a pause in seconds."""

    pattern: str
    how: int | str | float
    count: int
    headers: dict = field(default_factory=dict)


class Hub:
    """`with Hub() as hub:` a server with no repositories, at `hub.url`."""

    def __init__(self):
        self.repositories, self.storage, self.faults, self.requests = {}, {}, [], []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern, how, count=1, headers=None):
        self.faults.append(Fault(pattern, how, count, headers or {}))

    def count(self, pattern):
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def files(self, repo_id, revision="main"):
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]

    @contextmanager
    def taken(self, request):
        """The fault that this request gets, if any."""
        with self.lock:
            self.requests.append(request)
            fault = next(
                (f for f in self.faults if f.count and re.search(f.pattern, request)), None
            )
            if fault:
                fault.count -= 1
        yield fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    wbufsize = -1
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message=""):
        self.answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self):
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = address.path
        with self.hub.taken(f"{self.command} {path}") as fault:
            length = int(self.headers.get("Content-Length") or 0)
            if fault and fault.how == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            self.body = self.read_chunks() if chunked else self.rfile.read(length)
            if fault and isinstance(fault.how, float):
                time.sleep(fault.how)
            elif fault and isinstance(fault.how, int):
                self.answer(fault.how, b"<html>an error page</html>", **fault.headers)
                return
            if fault and fault.how == "cut answer":
                self.answer = lambda *a, **k: None
                self.route(path)
                self.close_connection = True
                self.connection.close()
                return
            self.route(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def route(self, path):
        with self.hub.lock:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return action(self, *(unquote(part) for part in match.groups()))
        return self.refuse(404, "EntryNotFound")

    def allowed(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, repo_id, write=False):
        """The repository, or None after the refusal that a stranger gets."""
        found = self.hub.repositories.get(repo_id)
        if found and (self.allowed() or not (write or found.private)):
            return found
        self.refuse(404 if self.allowed() else 401, "RepoNotFound", "Repository not found")
        return None

    # the API ----------------------------------------------------------------------------

    def whoami(self):
        if not self.allowed():
            return self.refuse(401, "", "Invalid username or password.")
        return self.answer(200, {"name": "tester", "type": "user", "orgs": [], "auth": {}})

    def create(self):
        if not self.allowed():
            return self.refuse(401, "", "Invalid username or password.")
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or "tester"
        if owner not in ("tester", "group"):
            return self.refuse(403, "", "You don't have the rights to create a model there")
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = self.hub.repositories[repo_id] = Repository(private)
        repository.commit("main", {".gitattributes": b"*.safetensors lfs\n"}, "initial commit")
        return self.answer(200, {"url": url, "name": repo_id, "id": repo_id})

    def info(self, repo_id, revision="main"):
        repository = self.repository(repo_id)
        if not repository:
            return None
        sha = repository.resolve(revision)
        if not sha:
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        return self.answer(
            200, {"id": repo_id, "modelId": repo_id, "private": repository.private, "sha": sha,
                  "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        )  # fmt: skip

    def refs(self, repo_id):
        repository = self.repository(repo_id)
        if not repository:
            return None
        lists = {
            kind: [{"name": n, "ref": f"refs/{short}/{n}", "targetCommit": sha}
                   for n, sha in values.items()]
            for kind, short, values in (("branches", "heads", repository.branches),
                                        ("tags", "tags", repository.tags))
        }  # fmt: skip
        return self.answer(200, {**lists, "converts": [], "pullRequests": []})

    def tree(self, repo_id, revision, below=""):
        repository = self.repository(repo_id)
        if not repository:
            return None
        sha = repository.resolve(revision)
        if not sha:
            return self.refuse(404, "RevisionNotFound")
        entries, folders = [], set()
        for path, data in repository.commits[sha].items():
            if below and not path.startswith(below + "/"):
                continue
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha(data)}
            if len(data) >= LFS_FROM:
                oid = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
                entry["oid"] = git_sha(pointer(data))
            entries.append(entry)
            if "/" in path:
                folders.add(path.rsplit("/", 1)[0])
        entries += [{"type": "directory", "path": f, "size": 0, "oid": git_sha(f.encode())}
                    for f in sorted(folders)]  # fmt: skip
        if below and not entries:
            return self.refuse(404, "EntryNotFound")
        return self.answer(200, entries)

    def validate(self):
        content = json.loads(self.body)["content"]
        if "license: not-a-license" in content:
            return self.answer(400, {"errors": [{"message": '"license" must be one of ...'}]})
        return self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo_id, revision):
        repository = self.repository(repo_id, write=True)
        if not repository:
            return None
        sha = repository.resolve(revision)
        if not sha:
            return self.refuse(404, "RevisionNotFound")
        here = repository.commits[sha]
        files = []
        for wanted in json.loads(self.body)["files"]:
            path, size = wanted["path"], wanted["size"]
            mode = "lfs" if size >= LFS_FROM else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in here:
                data = here[path]
                large = len(data) >= LFS_FROM
                entry["oid"] = hashlib.sha256(data).hexdigest() if large else git_sha(data)
            files.append(entry)
        return self.answer(200, {"files": files})

    def batch(self, repo_id):
        if not self.repository(repo_id, write=True):
            return None
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}
            objects.append(entry)
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what was announced"})
        self.hub.storage[oid] = self.body
        return self.answer(200)

    def commit(self, repo_id, revision):
        repository = self.repository(repo_id, write=True)
        if not repository:
            return None
        if revision not in repository.branches:
            return self.refuse(404, "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        head = repository.branches[revision]
        if header.get("parentCommit") not in (None, head):
            return self.refuse(412, "", "A commit has happened since.")
        files = dict(repository.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    return self.refuse(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.storage[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        sha = repository.commit(revision, files, header["summary"])
        return self.answer(
            200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha}
        )

    def branch(self, repo_id, name):
        repository = self.repository(repo_id, write=True)
        if not repository:
            return None
        if name in repository.branches:
            return self.answer(409, {"error": "Reference already exists"})
        repository.branches[name] = repository.branches["main"]
        return self.answer(200, {})

    def tag(self, repo_id, revision):
        repository = self.repository(repo_id, write=True)
        if not repository:
            return None
        name, sha = json.loads(self.body)["tag"], repository.resolve(revision)
        if name in repository.tags:
            return self.answer(409, {"error": "Reference already exists"})
        if not sha:
            return self.refuse(404, "RevisionNotFound")
        repository.tags[name] = sha
        return self.answer(200, {})

    def download(self, repo_id, revision, path):
        repository = self.repository(repo_id)
        if not repository:
            return None
        sha = repository.resolve(revision)
        if not sha:
            return self.refuse(404, "RevisionNotFound")
        data = repository.commits[sha].get(path)
        if data is None:
            return self.answer(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha
            )
        headers = {"X_Repo_Commit": sha, "ETag": f'"{git_sha(data)}"', "Accept_Ranges": "bytes"}
        if len(data) >= LFS_FROM:
            headers["X_Linked_Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X_Linked_Size"] = len(data)
            headers["ETag"] = headers["X_Linked_Etag"]
        if self.command == "HEAD":
            return self.answer(200, b"", Content_Length=len(data), **headers)
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if first:
            start = int(first[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], **headers)
        return self.answer(200, data, **headers)


def pointer(data):
    """What git holds of a large file."""
    oid = hashlib.sha256(data).hexdigest()
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
    )


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{REPO}", _Handler.info),
    ("GET", f"/api/models/{REPO}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{REPO}/refs", _Handler.refs),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)/(.+)", _Handler.tree),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/storage/([0-9a-f]+)", _Handler.store),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", _Handler.commit),
    ("POST", f"/api/models/{REPO}/branch/([^/]+)", _Handler.branch),
    ("POST", f"/api/models/{REPO}/tag/([^/]+)", _Handler.tag),
    ("GET HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", _Handler.download),
)
