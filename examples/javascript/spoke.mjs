// A spoke of alkpubsub/1: prints each event of a hub as one line of JSON.
//
//   node spoke.mjs TICKET [--local] [--count N] [--send JSON]... [--reply]
//   deno run --allow-ffi --allow-env --allow-read spoke.mjs TICKET ...

import process from 'node:process'
import { parseArgs } from 'node:util'
import { CLOSE, ProtocolError, connect, explain } from './alkpubsub.mjs'

const USAGE = `usage: spoke.mjs TICKET [options]
  --local       loopback only, no relay and no look-up
  --count N     exit after N events
  --send JSON   send {"type","payload","id"?} after joining; may be repeated
  --reply       answer each event with {"type":"reply","payload":{"to":its id,"type":its type}}
exit codes: 0 N events, or without --count the hub said goodbye; 1 it did so before N events;
2 usage; 3 the hub refused or closed the connection; 4 could not connect; 5 the connection broke; 6 not the protocol`

function usage(message) {
  console.error(`${message}\n${USAGE}`)
  process.exit(2)
}

function options() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        local: { type: 'boolean', default: false },
        count: { type: 'string' },
        send: { type: 'string', multiple: true, default: [] },
        reply: { type: 'boolean', default: false },
      },
    })
    if (positionals.length !== 1) throw new Error('give one ticket')
    if (values.count !== undefined && !/^[1-9]\d{0,14}$/.test(values.count)) throw new Error('--count takes a number above 0')
    return {
      ...values,
      ticket: positionals[0],
      count: values.count === undefined ? Infinity : Number(values.count),
      send: values.send.map((text) => JSON.parse(text)),
    }
  } catch (error) {
    return usage(explain(error))
  }
}

/** Resolves when the line is out, so that a reader that is slow slows us too. */
const print = (value) => new Promise((resolve) => process.stdout.write(`${JSON.stringify(value)}\n`, resolve))

async function run({ ticket, local, count, send, reply }) {
  let spoke
  try {
    spoke = await connect(ticket, { local })
  } catch (error) {
    console.error(`could not connect: ${explain(error)}`)
    return 4
  }
  try {
    try {
      for (const event of send) await spoke.send(event)
    } catch (error) {
      if (error instanceof TypeError || error instanceof RangeError) return usage(`--send: ${error.message}`)
      // The connection is gone; the events below end with the reason.
    }
    let seen = 0
    for await (const event of spoke) {
      await print(event)
      // If it cannot be sent, the events end with the reason.
      if (reply) await spoke.send({ type: 'reply', payload: { to: event.id, type: event.type } }).catch(() => {})
      seen += 1
      if (seen >= count) break
    }
    if (seen >= count) return 0
    const { code, reason } = spoke.closeReason
    if (code !== null && code !== CLOSE.goodbye) {
      console.error(`closed by the hub: ${reason} (code ${code})`)
      return 3
    }
    if (code === null && reason !== 'the hub ended the stream') {
      console.error(`the connection broke: ${reason}`)
      return 5
    }
    if (count === Infinity) return 0
    console.error(`the hub ended the stream after ${seen} of ${count} events`)
    return 1
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    console.error(`not the protocol: ${error.message}`)
    return 6
  } finally {
    await spoke.close()
  }
}

process.exit(await run(options()))
