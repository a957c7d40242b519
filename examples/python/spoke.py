"""A spoke of alkpubsub/1: prints each event of a hub as one line of JSON.

python spoke.py TICKET [--local] [--count N] [--send JSON]... [--reply]
"""

import argparse
import asyncio
import json
import sys
from typing import Any

import iroh

from alkpubsub import GOODBYE, ProtocolError, connect, explain

EXIT_CODES = """exit codes: 0 N events, or without --count the hub said goodbye; 1 it did so before N events;
2 usage; 3 the hub refused or closed the connection; 4 could not connect; 5 the connection broke; 6 not the protocol"""


def an_event(text: str) -> dict[str, Any]:
    """The value of --send, as arguments for `Spoke.send`."""
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("no type")
    if not isinstance(value.get("id", ""), str):
        raise ValueError("the id is not a string")
    return {name: value[name] for name in ("type", "id", "payload") if name in value}


def a_count(text: str) -> int:
    """The value of --count."""
    if (count := int(text)) < 1:
        raise ValueError("not above 0")
    return count


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A spoke of alkpubsub/1: prints each event as one line of JSON.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ticket")
    parser.add_argument("--local", action="store_true", help="loopback only, no relay and no look-up")
    parser.add_argument("--count", type=a_count, metavar="N", help="exit after N events")
    parser.add_argument(
        "--send", type=an_event, metavar="JSON", action="append", default=[],
        help='send {"type","payload","id"?} after joining; may be repeated',
    )
    parser.add_argument(
        "--reply", action="store_true",
        help='answer each event with {"type":"reply","payload":{"to":its id,"type":its type}}',
    )
    return parser.parse_args()


def complain(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


async def run(args: argparse.Namespace) -> int:
    try:
        spoke = await connect(args.ticket, local=args.local)
    except iroh.IrohError as error:
        complain(f"could not connect: {explain(error)}")
        return 4
    async with spoke:
        try:
            for event in args.send:
                await spoke.send(**event)
        except iroh.IrohError:
            pass  # The connection is gone; the events below end with the reason.
        seen = 0
        try:
            async for event in spoke:
                print(event.to_json(), flush=True)
                if args.reply:
                    try:
                        await spoke.send("reply", {"to": event.id, "type": event.type})
                    except iroh.IrohError:
                        pass  # Likewise.
                seen += 1
                if seen == args.count:
                    return 0
        except ProtocolError as error:
            complain(f"not the protocol: {error}")
            return 6
        closed = spoke.close_reason
        if closed.code not in (None, GOODBYE):
            complain(f"closed by the hub: {closed.reason} (code {closed.code})")
            return 3
        if closed.code is None and closed.reason != "the hub ended the stream":
            complain(f"the connection broke: {closed.reason}")
            return 5
        if args.count is None:
            return 0
        complain(f"the hub ended the stream after {seen} of {args.count} events")
        return 1


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.exit(asyncio.run(run(options())))
