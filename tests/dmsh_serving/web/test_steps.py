"""What the page asks of a Triton that may serve another model the next moment."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
from fake_triton import FakeTriton

from dmsh_serving.web import steps
from dmsh_serving.web.steps import TritonSteps

SPACE = {"bits": "64", "fingerprint": "ab" * 32}


def test_another_model_behind_the_same_address_is_noticed_soon_and_asked_for_once_a_second(monkeypatch):
    async def fingerprints():
        asking = TritonSteps(server.url, 10.0)
        try:
            found = [(await asking.code_space()).fingerprint]
            server.parameters = SPACE | {"fingerprint": "ef" * 32}
            found.append((await asking.code_space()).fingerprint)
            monkeypatch.setattr(steps, "_SPACE_SECONDS", 0.0)  # as if it had passed
            return [*found, (await asking.code_space()).fingerprint]
        finally:
            await asking.close()

    monkeypatch.setattr(steps, "_SPACE_SECONDS", 600.0)
    with FakeTriton() as server:
        server.parameters = SPACE
        assert asyncio.run(fingerprints()) == ["ab" * 32, "ab" * 32, "ef" * 32]


def test_a_slow_answer_does_not_undo_that_to_a_later_question(monkeypatch):
    async def played():
        asking = TritonSteps("127.0.0.1:1", 10.0)
        await asking.close()
        answers = [asyncio.Future(), asyncio.Future()]
        coming = iter(answers)
        monkeypatch.setattr(asking, "_client", SimpleNamespace(code_space=lambda: next(coming)))
        slow = asyncio.ensure_future(asking.code_space())
        await asyncio.sleep(0)
        later = asyncio.ensure_future(asking.code_space(anew=True))
        await asyncio.sleep(0)
        answers[1].set_result("new")
        await later
        answers[0].set_result("old")
        return await slow, await asking.code_space()

    monkeypatch.setattr(steps, "_SPACE_SECONDS", 600.0)
    assert asyncio.run(played()) == ("old", "new")
