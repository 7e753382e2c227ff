"""A bucket for tests: the parts of Cloud Storage's JSON interface that libraries ask for, locally.

Objects are put whole or not at all, under conditions on their generations, and copied one by one.
There is no rename, no append, no lock and no folder: whatever asks for one, or for anything else,
gets status 501, and stands in `refused`.

    with Bucket() as bucket:
        with mock.patch.dict(os.environ, bucket.environment):
            ...  # gs://bucket/…
"""

import base64
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c


class Bucket:
    """The server of a bucket, whatever its name, in memory.

    Attributes:
      objects: content and generation, by name.
      refused: what was asked for that a bucket does not have.
      puts: names of the objects in the order that they were put in.
    """

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.refused: list[str] = []
        self.puts: list[str] = []
        self.uploads: dict[str, tuple[str, str | None, bytearray]] = {}
        self.generation = 0
        self.guard = threading.RLock()
        handler = type("Handler", (_Handler,), {"bucket": self})
        self._server = _Server(("localhost", 0), handler)

    @property
    def environment(self) -> dict[str, str]:
        """What leads gcsfs, google-cloud-storage and tensorstore here."""
        url = f"http://localhost:{self._server.server_address[1]}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "project",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # It would ask for credentials.
            "NO_PROXY": "localhost",
            "no_proxy": "localhost",
        }

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin so, sorted."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes, expected: str | None = None) -> int | None:
        """Puts an object; its generation, or None where the expected one is another."""
        with self.guard:
            if expected is not None and self.objects.get(name, (b"", 0))[1] != int(expected):
                return None
            self.generation += 1
            self.objects[name] = (content, self.generation)
            self.puts.append(name)
            return self.generation

    def __enter__(self) -> "Bucket":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # Clients that end leave like that.
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"
    # Small answers wait for nothing.
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def _asked(self):
        url = urllib.parse.urlsplit(self.path)
        options = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        size = self.headers.get("Content-Length")
        if size is not None:
            body = self.rfile.read(int(size))
        elif "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = b""
        return url.path, options, body

    def _answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self):
        self.bucket.refused.append(f"{self.command} {self.path}")
        self._answer(501, {"error": {"code": 501, "message": "a bucket has no such thing"}})

    def _missing(self):
        self._answer(404, {"error": {"code": 404, "message": "not found"}})

    def _other_generation(self):
        self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})

    def _about(self, name):
        content, generation = self.bucket.objects[name]
        crc = google_crc32c.value(content).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "id": f"bucket/{name}/{generation}",
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "crc32c": base64.b64encode(crc).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def do_GET(self):
        path, options, _ = self._asked()
        with self.bucket.guard:
            if re.fullmatch(r"(/storage/v1)?/b/[^/]+", path):
                self._answer(200, {"kind": "storage#bucket", "name": path.rpartition("/")[2]})
            elif re.fullmatch(r"(/storage/v1)?/b/[^/]+/o/?", path):
                self._list(options)
            elif found := re.fullmatch(r"(?:/download)?(?:/storage/v1)?/b/[^/]+/o/(.+)", path):
                self._read(urllib.parse.unquote(found[1]), options)
            else:
                self._refuse()

    def _list(self, options):
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter")
        items, prefixes = [], set()
        for name in self.bucket.names(prefix):
            if options.get("startOffset", "") > name:
                continue
            if options.get("endOffset") and name >= options["endOffset"]:
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.add(prefix + head + found)
            else:
                items.append(self._about(name))
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _read(self, name, options):
        if name not in self.bucket.objects:
            self._missing()
            return
        content, generation = self.bucket.objects[name]
        if "media" not in (options.get("alt"),):
            self._answer(200, self._about(name))
            return
        headers = {"X_Goog_Generation": generation, "X_Goog_Stored_Content_Length": len(content)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if options.get("ifGenerationNotMatch") == str(generation):
            self._answer(304)
        elif options.get("ifGenerationMatch", str(generation)) != str(generation):
            self._other_generation()
        elif asked:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            last = min(last, len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            if first >= len(content):
                self._answer(416)
            else:
                self._answer(206, content[first : last + 1], **headers)
        else:
            self._answer(200, content, **headers)

    def do_POST(self):
        path, options, body = self._asked()
        if found := re.fullmatch(r"/storage/v1/b/[^/]+/o/(.+)/rewriteTo/b/[^/]+/o/(.+)", path):
            self._copy(*map(urllib.parse.unquote, found.groups()))
            return
        if not re.fullmatch(r"(/resumable)?/upload/storage/v1/b/[^/]+/o", path):
            self._refuse()
            return
        if "upload_id" in options:
            self._continue(options, body)
            return
        kind, name = options.get("uploadType"), options.get("name")
        expected = options.get("ifGenerationMatch")
        if kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1]
            _, about, content, _ = body.split(b"--" + mark.encode(), 3)
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            content = content[:-2] if content.endswith(b"\r\n") else content.removesuffix(b"\n")
            self._put(name, content, expected)
        elif kind == "media":
            self._put(name, body, expected)
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
            with self.bucket.guard:
                token = f"upload{len(self.bucket.uploads)}"
                self.bucket.uploads[token] = (name, expected, bytearray())
            base = self.bucket.environment["STORAGE_EMULATOR_HOST"]
            where = f"{base}{path}?uploadType=resumable&upload_id={token}"
            self._answer(200, {}, Location=where)
        else:
            self._refuse()

    def _copy(self, source, target):
        with self.bucket.guard:
            if source not in self.bucket.objects:
                self._missing()
                return
            self.bucket.put(target, self.bucket.objects[source][0])
            size = str(len(self.bucket.objects[target][0]))
            about = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size}
            about |= {"totalBytesRewritten": size, "resource": self._about(target)}
            self._answer(200, about)

    def do_PUT(self):
        _, options, body = self._asked()
        self._continue(options, body)

    def _continue(self, options, body):
        """A further part of an object, which is there once it is whole."""
        if options.get("upload_id") not in self.bucket.uploads:
            self._refuse()
            return
        name, expected, content = self.bucket.uploads[options["upload_id"]]
        content += body
        total = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
        if total != "*" and len(content) >= int(total):
            self._put(name, bytes(content), expected)
        else:
            self._answer(308, Range=f"bytes=0-{len(content) - 1}")

    def _put(self, name, content, expected):
        if self.bucket.put(name, content, expected) is None:
            self._other_generation()
        else:
            self._answer(200, self._about(name))

    def do_DELETE(self):
        path, options, _ = self._asked()
        found = re.fullmatch(r"(?:/storage/v1)?/b/[^/]+/o/(.+)", path)
        with self.bucket.guard:
            name = urllib.parse.unquote(found[1]) if found else ""
            if not found:
                self._refuse()
            elif name not in self.bucket.objects:
                self._missing()
            elif options.get("ifGenerationMatch", str(self.bucket.objects[name][1])) != str(
                self.bucket.objects[name][1]
            ):
                self._other_generation()
            else:
                del self.bucket.objects[name]
                self._answer(204)
