"""``python clickhouse_http.py FOLDER PORT [--version 22.3.1.1] [--certificate FILE.pem]``: chdb behind HTTP.

The package chdb-core cannot listen. This passes what the client sends over HTTP to it, so that the network client is
tested against the real parser, planner and storage; what is not ClickHouse's own is the transport.
"""

import argparse
import re
import ssl
import tempfile
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import chdb

# What the HTTP interface itself consumes.
TRANSPORT = {
    "query", "database", "query_id", "session_id", "session_timeout", "session_check", "compress", "decompress",
    "wait_end_of_query", "client_protocol_version", "send_progress_in_http_headers", "enable_http_compression", "role",
    "http_headers_progress_interval_ms", "buffer_size", "quota_key",
}  # fmt: skip
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path)
        if path.path == "/asked":
            self._send(200, str(Handler.asked).encode())
        else:
            self._answer(path, b"")

    def do_POST(self):
        self._answer(urllib.parse.urlsplit(self.path), self._body())

    def log_message(self, *_):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, path, body):
        Handler.asked += 1
        asked = dict(urllib.parse.parse_qsl(path.query, keep_blank_values=True))
        settings = {name: value for name, value in asked.items() if name not in TRANSPORT}
        try:
            with LOCK:
                self._send(200, self._run(asked.get("query"), body, settings))
        except RuntimeError as error:
            code = re.search(r"Code: (\d+)", str(error))
            self._send(500, str(error).encode(), ("X-ClickHouse-Exception-Code", code.group(1) if code else "1"))

    def _run(self, query, body, settings):
        connection = self.server.connection
        for name, value in settings.items():
            connection.query(f"SET {name} = '{value}'")
        if query is None or not query.lstrip().upper().startswith("INSERT"):
            result = connection.query(f"{query or ''}{body.decode()}", "TabSeparated").bytes()
        else:
            insert, _, form = (query + " " + body[:0].decode()).rstrip().rpartition("FORMAT ")
            if not insert:  # a statement whose rows are in it
                result = connection.query(query + body.decode(), "TabSeparated").bytes()
            else:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(body)
                    file.flush()
                    result = connection.query(f"{insert} FROM INFILE '{file.name}' FORMAT {form}").bytes()
        old = self.server.version
        return result if old is None else re.sub(rb"\b26\.\d+\.\d+\.\d+\b", old.encode(), result)

    def _send(self, status, body, *headers):
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), ("X-ClickHouse-Timezone", "UTC"), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("port", type=int)
    parser.add_argument("--version")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.connection, server.version = chdb.connect(options.folder), options.version
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # a client went away
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
