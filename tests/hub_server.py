"""A small server on 127.0.0.1 that speaks the part of the Hugging Face hub's protocol that a download uses.

    with HubServer(folder, "org/name") as hub:
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": ...})

Use it in a subprocess: huggingface_hub reads its environment variables when it is imported.
"""

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path
from typing import Self

COMMIT = hashlib.sha1(b"commit").hexdigest()


class HubServer:
    """Serves a folder as the model repository `repo_id`, with one commit (`COMMIT`) on its branch `main`.

    Attributes:
        url: value for HF_ENDPOINT.
        requests: (method, path, status) of each request so far.
        sent: (name, first byte, byte behind the last) of each part of a file that a GET request asked for.
        ignores_ranges: whether requests for a part of a file are answered with all of it.
        missing_files: files that the repository lists but answers 404 for.
        unauthorized: X-Error-Code of the answer to every request without `token`; None to let everyone in.
        refusal: the status of that answer.
        token: the token that is let in when `unauthorized` is set.
        cut_after_bytes: no answer goes beyond this byte of a file: the connection is closed there.
    """

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        *,
        missing_files: tuple[str, ...] = (),
        unauthorized: str | None = None,
        refusal: int = 401,
        token: str = "",
        cut_after_bytes: int | None = None,
        ignores_ranges: bool = False,
    ) -> None:
        self.folder = folder
        self.repo_id = repo_id
        self.missing_files = missing_files
        self.unauthorized = unauthorized
        self.refusal = refusal
        self.token = token
        self.cut_after_bytes = cut_after_bytes
        self.ignores_ranges = ignores_ranges
        self.requests: list[tuple[str, str, int]] = []
        self.sent: list[tuple[str, int, int]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, sorted."""
        marker = f"/{self.repo_id}/resolve/"
        return sorted(
            path.removeprefix(marker).split("/", 1)[1]
            for method, path, _ in self.requests
            if method == "GET" and path.startswith(marker)
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, send_body: bool) -> None:
        self._send_body = send_body
        hub = self.hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if hub.unauthorized is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error(path, hub.refusal, hub.unauthorized)
        api, files = f"/api/models/{hub.repo_id}", f"/{hub.repo_id}/resolve/"
        if path == api:
            path = f"{api}/revision/main"
        if path.startswith(f"{api}/revision/"):
            if path.rsplit("/", 1)[1] not in ("main", COMMIT):
                return self._error(path, 404, "RevisionNotFound")
            return self._json(path, {"id": hub.repo_id, "sha": COMMIT, "siblings": []})
        if path.startswith(f"{api}/tree/{COMMIT}"):
            return self._json(path, self._tree())
        if path.startswith(files):
            name = path.removeprefix(files).split("/", 1)[1]
            if name in hub.missing_files or not (hub.folder / name).is_file():
                return self._error(path, 404, "EntryNotFound")
            return self._file(path, hub.folder / name)
        return self._error(path, 404, "RepoNotFound")

    def _tree(self) -> list[dict[str, object]]:
        paths = [path for path in sorted(self.hub.folder.rglob("*")) if path.is_file()]
        return [
            {
                "type": "file",
                "path": path.relative_to(self.hub.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _blob_id(path),
            }
            for path in paths
        ]

    def _file(self, path: str, file: Path) -> None:
        content = file.read_bytes()
        begin, end, status = 0, len(content), 200
        headers = {"ETag": f'"{_blob_id(file)}"', "Accept-Ranges": "bytes"}
        if "Range" in self.headers and not self.hub.ignores_ranges:
            status = 206
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, end) if last else end
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        if self.command == "GET":
            self.hub.sent.append((file.relative_to(self.hub.folder).as_posix(), begin, end))
        self._send(path, status, headers, content[begin:end], cut_at=self.hub.cut_after_bytes, begin=begin)

    def _json(self, path: str, value: object) -> None:
        self._send(path, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, path: str, status: int, code: str) -> None:
        self._send(path, status, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def _send(
        self, path: str, status: int, headers: dict[str, str], body: bytes, cut_at: int | None = None, begin: int = 0
    ) -> None:
        self.hub.requests.append((self.command, path, status))
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not self._send_body:
            return
        if cut_at is not None and begin + len(body) > cut_at:
            body = body[: max(0, cut_at - begin)]
            self.close_connection = True
        self.wfile.write(body)


def _blob_id(path: Path) -> str:
    """The id that git gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
