import socketserver
import threading

from dmsh_serving.triton.server.control import Control


def test_who_holds_the_port_before_triton_does_not_get_the_key():
    heard = []

    class Thief(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline().strip():
                heard.append(line)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with socketserver.TCPServer(("127.0.0.1", 0), Thief) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        control = Control(f"127.0.0.1:{listener.server_address[1]}")
        assert control.is_ready()
        assert heard
        assert not any(control.key.encode() in line for line in heard)
        control.drain(0)
        assert any(control.key.encode() in line for line in heard)
        listener.shutdown()


def test_each_start_has_a_key_of_its_own():
    keys = []
    for _ in range(3):
        control = Control("127.0.0.1:0")
        keys.append(control.key)
        assert all(option.endswith(f"={control.key}") for option in control.options().values())
    assert len(set(keys)) == 3
    assert min(map(len, keys)) == 32
