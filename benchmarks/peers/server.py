"""An image search as one would write it by hand: FastAPI, PyTorch or ONNX Runtime, FAISS.

    python server.py ENCODER CODES.npy PORT THREADS

ENCODER is a checkpoint folder (PyTorch) or an ONNX file. `POST /search` takes an image file, returns ids and distances.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from dmsh_serving.images.decode import image_from_bytes

_K = 10


def encoder_of(path: Path, threads: int) -> tuple[Callable[[Any], Any], Callable[[bytes], Any]]:
    """Return what makes codes of images (1, S, S, 3), and what makes an image of a file's bytes."""
    if path.is_dir():
        import torch

        import dmsh_model

        torch.set_num_threads(threads)
        model = dmsh_model.load(path)
        config = model.config
        # One thread asks PyTorch: its OpenMP starts threads of its own for each that does, and they wait by spinning.
        asking = ThreadPoolExecutor(1)
        return lambda images: asking.submit(model.codes, images).result(), lambda data: image_from_bytes(
            data, config.image_size, config.framing
        )
    from dmsh_serving.encoder.onnxruntime import OnnxEncoder

    encoder = OnnxEncoder(path, threads=threads)
    return (
        lambda images: encoder.infer(images).code,
        lambda data: image_from_bytes(data, encoder.image_size, encoder.framing),
    )


def app_of(encoder: Path, codes: Path, threads: int) -> FastAPI:
    """Return the application; requests are answered by Starlette's threads, as of any plain function."""
    encode, decode = encoder_of(encoder, threads)
    stored = np.load(codes)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(8 * stored.shape[1])
    index.add(stored)
    app = FastAPI()

    def answer(data: bytes) -> dict[str, Any]:
        distances, ids = index.search(encode(decode(data)[None]), _K)
        return {"ids": ids[0].tolist(), "distances": distances[0].tolist()}

    @app.post("/search")
    async def search(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answer, await request.body())

    return app


if __name__ == "__main__":
    encoder, codes, port, threads = sys.argv[1:]
    app = app_of(Path(encoder), Path(codes), int(threads))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
