"""alkpubsub/1: a spoke over iroh, for Python 3.11. Copy this file.

    async with await connect(ticket) as spoke:
        await spoke.send("order.placed", {"n": 1})
        async for event in spoke:
            print(event.type, event.payload)
    print(spoke.close_reason)

A message is a u32 big-endian length and that many bytes of JSON {"type","id","payload"}. A length of
zero is a frame that carries nothing.

What the binding wants, and does not say: `read` gives b"" at the end of the stream, again and again;
a cancelled `read` or `write_all` leaves a torn frame, so nothing here cancels one and goes on; writes
from several tasks overtake each other, so a lock serialises them.
"""

import asyncio
import json
import re
import struct
import uuid
from dataclasses import dataclass
from typing import Any, AsyncIterator, Optional

import iroh

ALPN = b"alkpubsub/1"
#: The longest frame that either side accepts: an event of 16 MiB and room for its envelope.
MAX_FRAME = 16 * 1024 * 1024 + 16 * 1024
#: Bytes that are asked of the binding in one read.
CHUNK = 64 * 1024
#: Seconds that `close` waits for the hub to have what was sent.
DRAIN = 2.0
#: The codes with which either side closes a connection, the same for clients in all languages.
GOODBYE = 1
REFUSED = 2
BAD_FRAME = 3
TOO_LARGE = 4
TIMED_OUT = 5
FELL_BEHIND = 7


class ProtocolError(Exception):
    """What a peer sent is not the protocol; `code` is what it is told."""

    def __init__(self, message: str, code: int = BAD_FRAME) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Event:
    """An envelope; the payload is any JSON value."""

    type: str
    id: str
    payload: Any

    def to_json(self) -> str:
        """The envelope as one line of JSON."""
        envelope = {"type": self.type, "id": self.id, "payload": self.payload}
        return json.dumps(envelope, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class CloseReason:
    """Why the events ended; `code` is None unless the hub closed the connection with one."""

    code: Optional[int]
    reason: str


def encode(event: Event) -> bytes:
    """An event as a frame."""
    if not isinstance(event.type, str) or not isinstance(event.id, str) or not event.type:
        raise TypeError("an event has a type and an id, both of them strings, and the type is not empty")
    body = event.to_json().encode()
    if len(body) > MAX_FRAME:
        raise ValueError(f"an event of {len(body)} bytes is longer than the {MAX_FRAME} that a frame can be")
    return struct.pack(">I", len(body)) + body


def decode(body: bytes) -> Event:
    """The event in a frame's body. Without an id it is "", without a payload None; other fields are passed over."""
    try:
        value = json.loads(body.decode(), parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise ProtocolError("a frame is not a JSON object")
    event = Event(value.get("type"), value.get("id", ""), value.get("payload"))
    if not isinstance(event.type, str) or not event.type:
        raise ProtocolError('an envelope has no "type" that is a string and not empty')
    if not isinstance(event.id, str):
        raise ProtocolError('the "id" of an envelope is not a string')
    return event


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


async def _frames(recv: iroh.RecvStream) -> AsyncIterator[bytes]:
    """The bodies of the frames on a stream. Memory grows with what arrived, not with what was announced."""
    buffer = bytearray()
    at = 0  # What lies before it was handed out.
    while True:
        need = 4
        if len(buffer) - at >= 4:
            (length,) = struct.unpack_from(">I", buffer, at)
            if length > MAX_FRAME:
                raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_FRAME}", TOO_LARGE)
            need += length
            if len(buffer) - at >= need:
                body = bytes(buffer[at + 4 : at + need])
                at += need
                yield body
                continue
        del buffer[:at]
        at = 0
        chunk = await recv.read(CHUNK)
        if not chunk:
            if buffer:
                raise ProtocolError("the stream ended inside a frame")
            return
        buffer += chunk


async def connect(hub: "str | iroh.EndpointAddr", *, local: bool = False, secret_key: Optional[bytes] = None) -> "Spoke":
    """Joins a hub: a ticket's text, or an EndpointAddr. `local` is loopback only, without relay and look-up.

    Returning does not mean admitted: a hub that refuses closes the connection, and the events end with
    `close_reason.code` set.
    """
    addr = iroh.EndpointTicket.from_string(hub).endpoint_addr() if isinstance(hub, str) else hub
    builder = iroh.EndpointBuilder()
    if local:
        builder.apply_minimal()
        builder.relay_mode(iroh.RelayMode.disabled())
        # Both: an address family without an address of ours gets a socket that is open to the network.
        builder.bind_addr("127.0.0.1:0")
        builder.bind_addr("[::1]:0")
    else:
        builder.apply_n0()
    if secret_key is not None:
        builder.secret_key(secret_key)
    endpoint = await builder.bind()
    try:
        connection = await endpoint.connect(addr, ALPN)
        spoke = Spoke(endpoint, connection)
        await spoke._open()
        return spoke
    except BaseException:
        await endpoint.close()
        raise


class Spoke:
    """One stream to a hub. Iterate over it once for the hub's events; it is not read faster than you take them."""

    def __init__(self, endpoint: iroh.Endpoint, connection: iroh.Connection) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._stream: Optional[tuple[iroh.SendStream, iroh.RecvStream]] = None
        self._refused: Optional[iroh.IrohError] = None
        self._writing = asyncio.Lock()
        #: Set once the events have ended.
        self.close_reason: Optional[CloseReason] = None

    async def _open(self) -> None:
        try:
            stream = await self._connection.open_bi()
            self._stream = (stream.send(), stream.recv())
            # The hub does not see a stream before something was written to it.
            await self._stream[0].write_all(bytes(4))
        except iroh.IrohError as error:
            # Refused so soon that there is no stream. The events say why, as for one who is refused later.
            self._refused = error

    def _halves(self) -> "tuple[iroh.SendStream, iroh.RecvStream]":
        if self._stream is None:
            raise self._refused
        return self._stream

    @property
    def id(self) -> str:
        """Our endpoint id."""
        return str(self._endpoint.id())

    async def send(self, type: str, payload: Any = None, id: Optional[str] = None) -> Event:
        """Sends an event; gives it back once QUIC has taken it."""
        event = Event(type, str(uuid.uuid4()) if id is None else id, payload)
        frame = encode(event)
        async with self._writing:
            await self._halves()[0].write_all(frame)
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for body in _frames(self._halves()[1]):
                if body:
                    yield decode(body)
            self.close_reason = CloseReason(None, "the hub ended the stream")
        except ProtocolError as error:
            self._connection.close(error.code, str(error).encode())
            raise
        except iroh.IrohError as error:
            try:
                text = await asyncio.wait_for(self._connection.closed(), DRAIN)
            except asyncio.TimeoutError:
                text = explain(error)
            self.close_reason = _close_reason_of(text)

    async def close(self) -> None:
        """Waits a little for the hub to have what was sent, then leaves."""
        try:
            async with asyncio.timeout(DRAIN), self._writing:
                send, _ = self._halves()
                await send.finish()
                await send.stopped()
        except (iroh.IrohError, asyncio.TimeoutError):
            pass  # The connection is gone, or the hub does not read.
        self._connection.close(GOODBYE, b"the spoke left")
        await self._endpoint.close()

    async def __aenter__(self) -> "Spoke":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def explain(error: BaseException) -> str:
    """What an error says: of a binding's, its innermost cause, without places in its source and the backtrace."""
    text = error.message() if isinstance(error, iroh.IrohError) else str(error)
    text = text.split("\n\nStack backtrace", 1)[0].strip().rsplit("\n", 1)[-1]
    return re.sub(r" \([^()]*\.rs:\d+:\d+\)$", "", text.strip())


def _close_reason_of(text: str) -> CloseReason:
    """Reads the binding's text for why a connection ended."""
    match = re.fullmatch(r"closed by peer: (?:(.*) \(code (\d+)\)|(\d+))", text, re.DOTALL)
    if match is None:
        return CloseReason(None, text)
    reason, code, bare = match.groups()
    return CloseReason(int(code or bare), reason or "")
