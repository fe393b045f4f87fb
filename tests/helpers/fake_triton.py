"""A gRPC server that speaks Triton's protocol and does what a test tells it: refuse, be slow, notice a cancellation."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dmsh_serving.contract import CODE, DISTANCES, FILE, GALLERY_VERSION, IDS, IMAGE, KEYS, LOGITS, K

SIZE = 4


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """``with FakeTriton() as server``: answers row r of an image request with its first pixel as id.

    Attributes:
        refusals: (status, message) of the next requests, in turn; then they are answered.
        seconds: that each request takes.
        rows: rows of every request that came, in order.
        asked: the numbers of every request, {name of the input: array}.
        cancelled: set when a client has cancelled a request.
        budgets: seconds that each request's client gives it.
        said: the id and the header "authorization" of each request.
        parameters: those in the configuration of every model.
        shapes: {model: the shape of the images that it says it takes}, for models that are not as they should be.
    """

    def __init__(self, *, seconds=0.0, max_batch=4, threads=8, credentials=None):
        self.refusals, self.seconds, self.max_batch = [], seconds, max_batch
        self.rows, self.asked, self.budgets, self.said, self.parameters, self.shapes = [], [], [], [], {}, {}
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(threads))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        any_port = "127.0.0.1:0"
        secured = credentials and self._server.add_secure_port(any_port, credentials)
        self.url = f"127.0.0.1:{secured or self._server.add_insecure_port(any_port)}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def ModelConfig(self, request, context):  # noqa: N802
        config = service_pb2.ModelConfigResponse()
        config.config.name = request.name
        config.config.max_batch_size = self.max_batch
        for name, value in self.parameters.items():
            config.config.parameters[name].string_value = value
        if request.name.endswith("_file"):
            config.config.input.add(name=FILE, dims=[1])
        elif request.name in self.shapes:
            config.config.input.add(name=IMAGE, dims=self.shapes[request.name])
        elif request.name == "other":
            config.config.input.add(name="audio", dims=[1])
        else:
            config.config.input.add(name=IMAGE, dims=[SIZE, SIZE, 3])
        config.config.input.add(name=K, dims=[1])
        return config

    def ModelStatistics(self, request, context):  # noqa: N802
        answer = service_pb2.ModelStatisticsResponse()
        stats = answer.model_stats.add(name="dmsh_search", inference_count=sum(self.rows))
        stats.execution_count = len(self.rows)
        stats.inference_stats.success.count = len(self.rows)
        stats.inference_stats.success.ns = len(self.rows) * 3_000_000
        stats.inference_stats.queue.ns = len(self.rows) * 1_000_000
        stats.inference_stats.compute_infer.ns = len(self.rows) * 2_000_000
        return answer

    def ModelInfer(self, request, context):  # noqa: N802
        with self._lock:
            self.rows.append(request.inputs[0].shape[0])
            self.asked.append(
                {
                    tensor.name: np.frombuffer(content, np.int64).reshape(tensor.shape)
                    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
                    if tensor.datatype == "INT64"
                }
            )
            self.budgets.append(context.time_remaining())
            self.said.append((request.id, dict(context.invocation_metadata()).get("authorization")))
            refusal = self.refusals.pop(0) if self.refusals else None
        if refusal:
            context.abort(*refusal)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if not context.is_active():
                self.cancelled.set()
                break
            time.sleep(0.002)
        return self._answer(request)

    def _answer(self, request):
        rows = request.inputs[0].shape[0]
        names = {tensor.name: number for number, tensor in enumerate(request.inputs)}
        k = int(np.frombuffer(request.raw_input_contents[names[K]], np.int64)[0]) if K in names else 1
        first = np.zeros(rows, np.int64)
        if IMAGE in names:
            pixels = np.frombuffer(request.raw_input_contents[names[IMAGE]], np.uint8)
            first = pixels.reshape(rows, -1)[:, 0].astype(np.int64)
        ids = np.repeat(first[:, None], k, axis=1)
        text = b"".join(len(value).to_bytes(4, "little") + value for value in [b"v1"] * rows)
        keys = b"".join(len(value).to_bytes(4, "little") + value for value in [b"x"] * rows * k)
        found = {
            IDS: ("INT64", [rows, k], ids.tobytes()),
            DISTANCES: ("INT32", [rows, k], ids.astype(np.int32).tobytes()),
            KEYS: ("BYTES", [rows, k], keys),
            GALLERY_VERSION: ("BYTES", [rows, 1], text),
            CODE: ("UINT8", [rows, 8], bytes(8 * rows)),
            LOGITS: ("FP32", [rows, 64], bytes(4 * 64 * rows)),
        }
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name in [output.name for output in request.outputs] or list(found):
            kind, shape, content = found[name]
            answer.outputs.add(name=name, datatype=kind, shape=shape)
            answer.raw_output_contents.append(content)
        return answer
