"""Run workflows in a test: no broker, no waiting, functions mocked where the test wants it.

async with TestEnvironment(mocks={charge: {"id": "ch_1"}}) as env:
    assert await env.run(order, order_id="o1") == {...}
"""

from agnt5.replay.history import History, Verified
from agnt5.testing.environment import Emitted, TestEnvironment
from agnt5.testing.handle import Question, RunHandle

__all__ = ["Emitted", "History", "Question", "RunHandle", "TestEnvironment", "Verified"]
