"""A way to a server that can be cut and mended."""

import contextlib
import socket
import threading


class Breakable:
    """Forwards connections to ``target`` (host:port) from ``url``, until it is broken."""

    def __init__(self, target):
        host, port = target.split(":")
        self._target = (host, int(port))
        self._port = 0
        self._open = set()
        self._held = threading.Event()
        self.mend()

    @property
    def url(self):
        return f"127.0.0.1:{self._port}"

    def mend(self):
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hold(self):
        """Let connections stand, and hand nothing on."""
        self._held.set()

    def cut(self):
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(self._target)
                self._open |= {here, there}
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._held.is_set():
                    continue
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
