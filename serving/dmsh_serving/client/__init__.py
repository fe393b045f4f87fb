"""Ask a running Triton: ``with SearchClient("127.0.0.1:8001") as client: client.search(images, k=10)``.

In asyncio: ``async with AsyncSearchClient("127.0.0.1:8001") as client: await client.search(images, k=10)``.
"""

from dmsh_serving.client.answers import Answer, CodeSpace, Tensor, strings_of
from dmsh_serving.client.asynchronous import AsyncSearchClient
from dmsh_serving.client.blocking import SearchClient
from dmsh_serving.client.failures import error_of_status
from dmsh_serving.client.questions import CHANNEL_OPTIONS, DEFAULT_URL, token_headers
from dmsh_serving.client.retries import Retries

__all__ = [
    "CHANNEL_OPTIONS",
    "DEFAULT_URL",
    "Answer",
    "AsyncSearchClient",
    "CodeSpace",
    "Retries",
    "SearchClient",
    "Tensor",
    "error_of_status",
    "strings_of",
    "token_headers",
]
