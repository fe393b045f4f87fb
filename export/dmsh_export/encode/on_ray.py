"""The engine ``ray``: Ray Data actors encode, on this machine or on a cluster whose nodes see the same folders.

Each row of the data set is a shard, and each shard writes its own named file. So whatever Ray runs twice, the files are
the same. Images are decoded inside the actor by our own rule: ``ray.data.read_images`` has another decoder, which would
give other codes.

An address of a cluster is taken from ``RAY_ADDRESS``. Ray's ports have no authentication of their own: see SECURITY.md.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from dmsh_export.encode.run import Job
from dmsh_export.encode.shards import Shard, ShardResult
from dmsh_serving.errors import DmshError, MissingError

__all__ = ["on_ray"]


class _Actor:
    """One worker: opens the model once, then encodes a shard per batch of one row."""

    def __init__(self, job: Job) -> None:
        self._encoder = job.encoder()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"done": self._encoder(row["shard"])}
        except DmshError as error:  # Ray would raise an error of its own
            return {"done": error}


def on_ray(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[ShardResult]:
    """Encode with ``workers`` actors of one core each; an actor or a node that dies is replaced by Ray.

    Raises:
        MissingError: Ray is not installed.
        DmshError: an actor's, as it is.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingError("ray is not installed: pip install 'dmsh-toolkit[ray]'") from error
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        size = min(workers, len(shards))
        done = rows.map(
            _Actor,  # type: ignore[arg-type]
            fn_constructor_args=(job,),
            compute=ActorPoolStrategy(min_size=size, max_size=size),
            num_cpus=1,
        )
        for row in done.iter_rows():
            if isinstance(row["done"], DmshError):
                raise row["done"]
            yield row["done"]
    finally:
        if own:
            ray.shutdown()
