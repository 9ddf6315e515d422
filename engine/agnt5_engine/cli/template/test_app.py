"""Tests need no engine: `python -m pytest`."""

import asyncio

from app import greet, welcome

from agnt5.testing import TestEnvironment


def test_a_new_user_is_welcomed() -> None:
    async def scenario() -> None:
        async with TestEnvironment() as env:
            assert await env.run(welcome, name="Ada") == "Hello, Ada! Good to have you here."

    asyncio.run(scenario())


def test_the_greeting_is_what_greet_says() -> None:
    async def scenario() -> None:
        async with TestEnvironment(mocks={greet: "Ahoy!"}) as env:
            assert await env.run(welcome, name="Ada") == "Ahoy! Good to have you here."

    asyncio.run(scenario())
