"""What the watch concludes from its searches, over a server made of a few lines."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny_model

from dmsh_serving.encoder import known_answer
from dmsh_serving.triton.canary import Canary
from dmsh_serving.triton.server import vitals
from dmsh_serving.triton.server.vitals import Vitals

IMAGES = tiny_model.random_images(1)
CANARY = Canary.of_known_answer(known_answer.dump(IMAGES, tiny_model.codes_of(IMAGES)))
MODELS = ("dmsh_decode", "dmsh_encoder", "dmsh_ranker")


def still(model):
    """The processor's time of a server that does nothing, whichever of its models is meant."""
    return 3.0


class Server(ThreadingHTTPServer):
    """Answers as Triton does; ``moving`` are the models whose counts grow, ``answers`` whether a search is answered."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.moving, self.answers, self.status, self.looks = set(MODELS), True, 200, 0
        self.silent, self.code, self.asked, self.words = False, CANARY.code, [], ""
        self.idle = set()  # models that have nothing to do, and answer at once when they are asked by themselves
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"127.0.0.1:{self.server_port}"

    def stats(self):
        self.looks += 1
        counts = {model: self.looks if model in self.moving else 7 for model in MODELS}
        return {"model_stats": [{"name": model, "execution_count": count} for model, count in counts.items()]}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.silent:
            time.sleep(1.5)
        elif self.path.endswith("/stats"):
            self.say(self.server.stats())
        else:
            inputs = [{"name": "image", "dims": [8, 8, 3]}, {"name": "code", "dims": [8]}, {"name": "k", "dims": [1]}]
            self.say(
                {
                    "max_batch_size": 8,
                    "input": inputs,
                    "parameters": {k: {"string_value": v} for k, v in CANARY.parameters().items()},
                }
            )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = int(self.headers["Inference-Header-Content-Length"])
        self.server.asked.append((json.loads(body[:head]), body[head:]))
        if not self.server.answers and self.path.split("/")[3] not in self.server.idle:
            time.sleep(1.5)
        found = {"outputs": [{"name": "code", "data": list(self.server.code)}]}
        self.say(found if self.server.status == 200 else {"error": self.server.words}, self.server.status)

    def say(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the watch lost its patience
            self.wfile.write(body)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    """Wait for a search less than the server keeps waiting; all else has the time that a busy machine needs."""
    monkeypatch.setattr(vitals, "PATIENCE_SECONDS", 0.6)


@pytest.fixture
def curt(monkeypatch):
    """Wait little for a model that is asked by itself."""
    monkeypatch.setattr(vitals, "ALONE_SECONDS", 0.6)


def test_a_search_that_is_answered_is_a_sign_of_life(server):
    told = []
    looked = Vitals(server.url, still, told.append)
    assert looked._look() is None
    assert (looked.searches, told) == (1, [])
    ((head, sent),) = server.asked
    assert sent == len(CANARY.file).to_bytes(4, "little") + CANARY.file + (1).to_bytes(8, "little")
    assert [each["parameters"]["binary_data_size"] for each in head["inputs"]] == [len(sent) - 8, 8]


@pytest.mark.parametrize("answer", [[], 7, None, {}, {"model_stats": [7]}, {"model_stats": [], "parameters": [7]}])
@pytest.mark.parametrize("asked", ["do_GET", "do_POST"])
def test_another_program_on_the_port_does_not_end_the_watch(server, monkeypatch, asked, answer):
    monkeypatch.setattr(Handler, asked, lambda self: self.say(answer))
    told = []
    assert Vitals(server.url, still, told.append)._look() is None
    assert told == []


@pytest.mark.parametrize("outputs", [7, [], [{"name": "code"}], [{"name": "code", "data": ["x"]}], [{"name": 1}]])
def test_an_answer_without_a_code_does_not_end_the_watch(server, monkeypatch, outputs):
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.say({"outputs": outputs}))
    looked = Vitals(server.url, still, pytest.fail)
    assert (looked._look(), looked.searches) == (None, 0)


@pytest.mark.parametrize(("moving", "hanging"), [(MODELS[:2], "dmsh_ranker"), (MODELS[:0], "dmsh_decode")])
def test_fault_36_a_model_that_finishes_nothing_while_a_search_waits_hangs(server, impatient, curt, moving, hanging):
    server.answers, server.moving = False, set(moving)
    assert Vitals(server.url, still, print)._look() == f"{hanging} finished no request for 0.6 s"


def test_a_server_that_is_merely_busy_is_left_alone(server, impatient):
    server.answers = False
    assert Vitals(server.url, still, print)._look() is None


@pytest.mark.parametrize("busy", [MODELS[:1], MODELS[:2]])
def test_a_model_behind_a_busy_one_has_nothing_to_do_and_does_not_hang(server, impatient, busy):
    server.answers, server.moving, server.idle = False, set(busy), set(MODELS) - set(busy)
    assert Vitals(server.url, still, print)._look() is None
    asked = [head["inputs"][0] for head, _ in server.asked[1:]]
    shapes = {"dmsh_encoder": ("image", [1, 8, 8, 3]), "dmsh_ranker": ("code", [1, 8])}
    assert [(each["name"], each["shape"]) for each in asked] == [shapes[model] for model in MODELS if model not in busy]


def test_a_model_that_finishes_something_else_meanwhile_does_not_hang(server, impatient, curt, monkeypatch):
    server.answers, server.moving = False, {"dmsh_decode", "dmsh_encoder"}
    looked = Vitals(server.url, still, print)
    ask = looked._ask

    def moved_meanwhile(method, path, *given):
        if path == "/v2/models/dmsh_ranker/infer":
            server.moving.add("dmsh_ranker")
        return ask(method, path, *given)

    monkeypatch.setattr(looked, "_ask", moved_meanwhile)
    assert looked._look() is None


FULL = "[request id: canary] Exceeds maximum queue size"
LATE = "[request id: canary] Request timeout expired"


@pytest.mark.parametrize(("status", "words"), [(500, "is not healthy"), (503, FULL), (503, LATE)])
def test_fault_36_a_model_that_finishes_nothing_while_triton_refuses_for_it_hangs(server, status, words):
    looked = Vitals(server.url, still, print)
    server.status, server.words, server.moving = status, words, {"dmsh_encoder", "dmsh_ranker"}
    assert [looked._look() for _ in range(4)] == [None, None, None, "dmsh_decode finished no request for 15 s"]
    server.status = 200
    assert looked._look() is None
    server.status, server.moving = status, set(MODELS)
    assert [looked._look() for _ in range(6)] == [None] * 6, "each finishes requests"
    server.moving = {"dmsh_encoder", "dmsh_ranker"}
    used = dict.fromkeys(MODELS, 0.0)
    busy = Vitals(server.url, lambda model: used[model], print)
    for used["dmsh_decode"] in (0.0, 5.0, 10.0):  # it grows between the looks
        assert busy._look() is None, "it computes"


def computing(*models):
    """The processor's time of a server in which these models compute."""
    return lambda model: time.monotonic() if model in models else 0.0


def test_a_model_that_computes_one_slow_batch_does_not_hang_unless_it_never_ends(server, impatient, curt, monkeypatch):
    monkeypatch.setattr(vitals, "MOST_LOOKS", 2)
    server.answers, server.moving, server.idle = False, {"dmsh_decode"}, {"dmsh_ranker"}
    looked = Vitals(server.url, computing("dmsh_encoder"), print)
    for _ in range(2):
        assert [looked._look(), looked._look()] == [None, None]
        server.moving.add("dmsh_encoder")
        assert looked._look() is None, "it has finished something"
        server.moving.remove("dmsh_encoder")
    given_up = "dmsh_encoder computed through 2 looks in a row and finished no request"
    assert [looked._look() for _ in range(3)] == [None, None, given_up]


def test_a_model_that_hangs_behind_one_that_computes_is_noticed(server, impatient, curt):
    server.answers, server.moving = False, {"dmsh_decode"}
    looked = Vitals(server.url, computing("dmsh_decode", "dmsh_encoder"), print)
    assert looked._look() == "dmsh_ranker finished no request for 0.6 s"


@pytest.mark.parametrize(
    ("status", "words", "hangs"), [(500, "", True), (503, FULL, True), (503, "the database does not answer", False)]
)
def test_fault_36_a_model_that_refuses_in_words_of_its_own_lives(server, impatient, status, words, hangs):
    server.answers, server.moving, server.idle = False, set(MODELS[:2]), {"dmsh_ranker"}
    server.status, server.words = status, words
    hanging = "dmsh_ranker finished no request for 0.6 s" if hangs else None
    assert Vitals(server.url, still, print)._look() == hanging


def test_a_server_that_refuses_in_words_of_its_own_lives(server):
    server.status, server.words, server.moving = 503, "the database does not answer", set()
    looked = Vitals(server.url, still, print)
    assert [looked._look() for _ in range(6)] == [None] * 6


def test_a_server_that_is_full_and_finishes_batches_lives(server):
    server.status, server.words = 503, FULL
    looked = Vitals(server.url, still, print)
    assert [looked._look() for _ in range(6)] == [None] * 6


def test_fault_36_a_server_that_says_nothing_hangs(server, monkeypatch):
    monkeypatch.setattr(vitals, "SILENCE_SECONDS", 0.6)
    server.silent = True
    assert Vitals(server.url, still, print)._look() == "tritonserver gave no answer for 0.6 s"


def test_a_server_that_is_gone_is_not_for_the_canary_to_tell(server):
    url = server.url
    server.shutdown()
    server.server_close()
    assert Vitals(url, still, print)._look() is None


def test_a_wrong_code_is_told_once(server):
    told = []
    looked = Vitals(server.url, still, told.append)
    server.code = bytes([server.code[0] ^ 3]) + server.code[1:]
    for _ in range(3):
        assert looked._look() is None
    assert told == ["a search for the known image gives a code of which 2 bits are wrong: stop this server"]


def test_it_looks_again_and_again_until_something_hangs(server, impatient, monkeypatch):
    monkeypatch.setattr(vitals, "EVERY_SECONDS", 0.01)
    looking = Vitals(server.url, still, print)
    looking.start()
    deadline = time.monotonic() + 10
    while looking.searches < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.answers, server.moving = False, set()
    while looking.hanging is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    looking.stop()
