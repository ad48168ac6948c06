"""A small HTTP server for tests/fetch.sh: serves one folder on 127.0.0.1, well or badly.

usage: http_server.py FOLDER PORT_FILE

Writes the port that it got to PORT_FILE. The first part of a url's path says how the file behind it is served:
  /ok/FILE          whole, or from the byte that a Range header asks for
  /noranges/FILE    always whole
  /cut/N/FILE       as ok, but the connection ends after N bytes
  /short/N/FILE     as ok, of a file that has only its first N bytes
  /slow/N/FILE      as ok, N bytes a second
  /moved/FILE       a redirect to /ok/FILE
Anything else is 404. Each request is one line on stdout: path and Range header.
"""

import http.server
import os
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers.get("Range", "-"), flush=True)
        how, *rest = self.path.strip("/").split("/")
        number = int(rest.pop(0)) if how in ("cut", "short", "slow") else 0
        path = os.path.join(sys.argv[1], *rest)
        if how == "moved":
            self.send_response(302)
            self.send_header("Location", "/ok/" + "/".join(rest))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if how not in ("ok", "noranges", "cut", "short", "slow") or not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, "rb") as file:
            data = file.read()
        if how == "short":
            data = data[:number]
        first, total = 0, len(data)
        asked = self.headers.get("Range")
        if asked and how != "noranges":
            first = int(asked.removeprefix("bytes=").split("-")[0])
            if first >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            self.send_response(200)
        data = data[first:]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            if how == "slow":
                for at in range(0, len(data), max(1, number // 10)):
                    self.wfile.write(data[at : at + max(1, number // 10)])
                    time.sleep(0.1)
            else:
                self.wfile.write(data[:number] if how == "cut" else data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
with open(sys.argv[2] + ".new", "w") as out:
    out.write(f"{server.server_address[1]}\n")
os.rename(sys.argv[2] + ".new", sys.argv[2])
server.serve_forever()
