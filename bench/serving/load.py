"""Load on a server: closed loop, or open loop with Poisson arrivals. Run as a file: it imports nothing from here.

Reads one JSON object from stdin: `url`; `texts`; `seconds`; `seed`; and either `clients`, each of which asks again as
soon as it has its answer, or `rate` of requests a second, which come whether or not earlier ones were answered. Prints
one: `requests`, each [seconds when due, when sent, when answered, status]; `seconds` until the last answer;
`cpu_seconds` of this process. A request's latency counts from when it was due, so that a server that holds up its
clients gains nothing. The status of a request that failed on its way is the name of the error.
"""

import asyncio
import json
import random
import sys
import time
from typing import Any

import aiohttp

SECONDS_TO_ANSWER = 60
Request = tuple[float, float, float, int | str]


class Load:
    """Requests of one text each, in turn.

    Args:
        asked: the JSON object.
        session: of the connections.
    """

    def __init__(self, asked: dict[str, Any], session: aiohttp.ClientSession) -> None:
        self.url, self.texts, self.seconds, self.session = asked["url"], asked["texts"], asked["seconds"], session
        self.requests: list[Request] = []
        self.sent = 0
        self.begun = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    async def ask(self, due: float) -> None:
        text = self.texts[self.sent % len(self.texts)]
        self.sent += 1
        sent = self.elapsed()
        status: int | str
        try:
            async with self.session.post(self.url, json={"inputs": text}) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        self.requests.append((due, sent, self.elapsed(), status))

    async def closed(self, clients: int) -> None:
        async def client() -> None:
            while (now := self.elapsed()) < self.seconds:
                await self.ask(now)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, seed: int) -> None:
        rng, due = random.Random(seed), 0.0
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.expovariate(rate)) < self.seconds:
                await asyncio.sleep(max(0.0, due - self.elapsed()))
                group.create_task(self.ask(due))


async def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Send the load and tell of every request."""
    cpu = time.process_time()
    timeout = aiohttp.ClientTimeout(total=SECONDS_TO_ANSWER)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        load = Load(asked, session)
        await (load.open(asked["rate"], asked["seed"]) if "rate" in asked else load.closed(asked["clients"]))
        return {"requests": load.requests, "seconds": load.elapsed(), "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
