"""A hub on this machine that speaks the Hugging Face hub's paths."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_averysecrettoken"


class Server:
    """A server that answers by `answer(handler)` and remembers what it was asked and sent."""

    def __init__(self, answer):
        outer = self
        self.requests, self.sent = [], 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.path, headers))
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

            def reply(self, status, headers, body=b""):
                self.send_response(status)
                for name, value in ({"Content-Length": len(body)} | headers).items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command == "GET":
                    try:
                        for start in range(0, len(body), 65536):
                            self.wfile.write(body[start : start + 65536])
                            outer.sent += len(body[start : start + 65536])
                    except OSError:
                        self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class FakeHub:
    """One model; its large files are sent on to a store on another port, as the hub does."""

    def __init__(self, folder):
        self.folder = folder
        self.status, self.code = None, None
        self.ranges = True
        self.flaky, self.broken = False, set()  # the first answer to each range is half of it
        self.store, self.hub = Server(self._store), Server(self._hub)

    def close(self):
        self.store.close()
        self.hub.close()

    @property
    def sent(self):
        return self.hub.sent + self.store.sent

    def _hub(self, handler):
        asked = re.fullmatch(r"/owner/name/resolve/([^/]+)/([\w.-]+)", handler.path)
        if self.status:
            return handler.reply(self.status, {"X-Error-Code": self.code} if self.code else {})
        if not asked or asked[1] not in ("main", "v1.0", COMMIT, "refs%2Fpr%2F3"):
            return handler.reply(404, {"X-Error-Code": "RevisionNotFound"})
        path = self.folder / asked[2]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{path.name}"'}
        if not path.is_file():
            return handler.reply(404, headers | {"X-Error-Code": "EntryNotFound"})
        if path.suffix == ".safetensors":
            headers["X-Linked-ETag"] = headers.pop("ETag")
            headers["X-Linked-Size"] = path.stat().st_size
            target = f"{self.store.address}/{path.name}?Signature=secret"
            return handler.reply(302, headers | {"Location": target})
        return handler.reply(200, headers, path.read_bytes())

    def _store(self, handler):
        body = (self.folder / handler.path[1:].split("?")[0]).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"] or "")
        if not asked or not self.ranges:
            return handler.reply(200, {"ETag": '"of the store"'}, body)
        start, stop = int(asked[1]), int(asked[2]) + 1
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}",
            "Content-Length": stop - start,
        }
        if start >= len(body):
            return handler.reply(416, {})
        if self.flaky and (handler.path, start) not in self.broken:
            self.broken.add((handler.path, start))
            stop = (start + stop) // 2
        return handler.reply(206, headers, body[start:stop])


def constants(address, cache):
    """What huggingface_hub makes of HF_ENDPOINT and HF_HUB_CACHE when it is imported."""
    return {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }


def served(folder, tmp_path, monkeypatch):
    """Yield a `FakeHub` of a folder that mvl and huggingface_hub take for the hub."""
    hub = FakeHub(folder)
    for name, value in constants(hub.hub.address, tmp_path / "hf").items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    yield hub
    hub.close()
