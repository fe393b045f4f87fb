"""A client that goes away ends its work."""

import asyncio

import pytest

from dmsh_serving.web.http.abandoned import AbandonedError, unless_abandoned


class Client:
    """A request whose client goes away after so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    async def receive(self):
        await asyncio.sleep(self.seconds)
        return {"type": "http.disconnect"}


def test_an_answer_in_time_is_given_and_an_error_raised():
    async def work():
        return 5

    async def fail():
        raise ValueError("no")

    assert asyncio.run(unless_abandoned(Client(60), work())) == 5
    with pytest.raises(ValueError, match="no"):
        asyncio.run(unless_abandoned(Client(60), fail()))


def test_work_that_nobody_waits_for_is_cancelled():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(AbandonedError):
        asyncio.run(unless_abandoned(Client(0.01), work()))
    assert ended == ["cancelled"]


def test_a_caller_that_is_cancelled_takes_its_work_along():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("ended")

    async def caller():
        task = asyncio.ensure_future(unless_abandoned(Client(60), work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(caller())
    assert ended == ["ended"]
