"""The traffic: one program that serves HTTP in one network namespace, and one that asks it from another.

load.py serve              answers on every address, port 80, until standard input ends
load.py ask NAME=ADDRESS…  asks each address RATE times a second, on connections that are kept for a while; when
                           standard input ends, it finishes what it began and prints {NAME: [when, …]} as JSON

`when` is time.monotonic() when the exchange begins; its place in the list is the exchange's number. The number is
in the target of the request and in the header X-Number of the response. On an address one comes after the other.
"""

import asyncio
import json
import sys
import time

RATE = 20
REQUESTS_PER_CONNECTION = 25
ANSWER_SECONDS = 20  # an address is on the same machine, but the machine may be busy


async def serve() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await _head(reader):
            number = request.split()[1].rpartition("/")[2]
            body = f"this is {number}\n"
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Number: {number}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
        writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", 80):
        print("ready", flush=True)
        await _end_of_input()


async def ask(addresses: dict[str, str]) -> None:
    ended = asyncio.create_task(_end_of_input())
    begin = time.monotonic()

    async def one(name: str, address: str, offset: float) -> list[float]:
        sent: list[float] = []
        writer = None
        due = begin + offset / RATE
        while True:
            await asyncio.sleep(due - time.monotonic())
            due = max(due + 1 / RATE, time.monotonic())  # what could not be in time is not made up for
            if ended.done():
                break
            number = len(sent)
            if number % REQUESTS_PER_CONNECTION == 0:
                if writer is not None:
                    writer.close()
                reader, writer = await asyncio.open_connection(address, 80)
            sent.append(time.monotonic())
            writer.write(f"GET /{name}/{number} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await _head(reader)
                assert f"X-Number: {number}\r\n" in response, response
                length = int(response.partition("Content-Length: ")[2].partition("\r\n")[0])
                await reader.readexactly(length)
        if writer is not None:
            writer.close()
        return sent

    asked = [one(name, address, at / len(addresses)) for at, (name, address) in enumerate(addresses.items())]
    times = await asyncio.gather(*asked)
    print(json.dumps(dict(zip(addresses, times, strict=True))))


async def _head(reader: asyncio.StreamReader) -> str:
    """The head of the next message; "" where the other side has closed the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


async def _end_of_input() -> None:
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    verb, *named = sys.argv[1:]
    asyncio.run(serve() if verb == "serve" else ask(dict(one.split("=", 1) for one in named)))
