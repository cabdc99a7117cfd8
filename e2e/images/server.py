"""A workload that shows what it sees: GET / greets, and GET /tree lists every file
of its root, one line each: path in hexadecimal digits, kind, mode, user, group,
SHA-256 of the content or the link's target, and the extended
attributes."""

import hashlib
import http.server
import os
import stat


def mounts():
    with open("/proc/self/mountinfo", "rb") as lines:
        return {line.split()[4] for line in lines} - {b"/"}


def describe(path):
    status = os.lstat(path)
    kind, content, attributes = "other", "-", "-"
    if stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(status.st_mode):
        kind, content = "link", os.readlink(path).hex()
    elif stat.S_ISREG(status.st_mode):
        kind = "file"
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    if kind != "link":
        names = sorted(map(os.fsencode, os.listxattr(path)))
        found = [f"{name.hex()}={os.getxattr(path, name).hex()}" for name in names]
        attributes = ",".join(found) or "-"
    mode = stat.S_IMODE(status.st_mode)
    return f"{path.hex()} {kind} {mode:o} {status.st_uid} {status.st_gid} {content} {attributes}"


def walk(path, mounted):
    if path in mounted:
        yield f"{path.hex()} mount"
        return
    yield describe(path)
    if os.path.isdir(path) and not os.path.islink(path):
        for name in sorted(os.listdir(path)):
            yield from walk(os.path.join(path, name), mounted)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        lines = walk(b"/", mounts()) if self.path == "/tree" else ["a measured guest"]
        body = "".join(line + "\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("", 8080), Handler).serve_forever()
