"""An asyncio service: a line in, a reply streamed out; a client that hangs up ends its reply.

    python samples/embed/service.py BUNDLE [--port 7000]
    nc 127.0.0.1 7000

Replies to several clients run side by side in threads of their own; the event loop never waits for the model.
"""

import argparse
import asyncio
import contextlib

from rrt_edge.runtime import Model, RRTEdgeError


class Service:
    def __init__(self, model: Model) -> None:
        self.model = model

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client: each line it sends is the next turn of its conversation."""
        session, messages = self.model.session(), []
        with contextlib.suppress(ConnectionError):
            while line := (await reader.readline()).decode("utf-8", "replace").strip():
                messages.append({"role": "user", "content": line})
                reply = ""
                try:
                    async with session.stream(messages, max_tokens=200) as stream:
                        async for token in stream:
                            reply += token.text
                            writer.write(token.text.encode())
                            await writer.drain()  # raises where the client has gone: the stream ends with it
                except RRTEdgeError as error:
                    reply = ""
                    writer.write(f"error: {error}".encode())
                writer.write(b"\n")
                messages.append({"role": "assistant", "content": reply})
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=7000)
    arguments = parser.parse_args()
    with Model.load(arguments.bundle) as model:
        server = await asyncio.start_server(Service(model).talk, "127.0.0.1", arguments.port)
        print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
