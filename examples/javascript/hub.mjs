// A hub of alkpubsub/1. The first line on stdout is its ticket, then one line of JSON for each event
// that a spoke sends. Each line of JSON on stdin, {"type","payload","id"?,"to"?}, goes to all spokes,
// or to those of the endpoint id in "to". It runs until it is told to end (Ctrl-C, SIGTERM).
//
//   node hub.mjs [--local] [--echo] [--allow ENDPOINT_ID]...
//   deno run --allow-ffi --allow-env --allow-read hub.mjs ...

import process from 'node:process'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Hub, explain } from './alkpubsub.mjs'

const USAGE = `usage: hub.mjs [options]
  --local      loopback only, no relay and no look-up
  --echo       send every event back to its spoke, its type changed to "echo"
  --allow ID   admit only this endpoint id; may be repeated`

let options
try {
  options = parseArgs({
    options: {
      local: { type: 'boolean', default: false },
      echo: { type: 'boolean', default: false },
      allow: { type: 'string', multiple: true },
    },
  }).values
} catch (error) {
  console.error(`${explain(error)}\n${USAGE}`)
  process.exit(2)
}

const { local, echo, allow } = options
const hub = await Hub.listen({ local, admit: (id) => allow === undefined || allow.includes(id) })
hub.onjoin = (spoke) => console.error(`joined: ${spoke.id} (${hub.spokes.length})`)
hub.onleave = (spoke, why) => console.error(`left: ${spoke.id} (${hub.spokes.length}): ${why}`)
hub.onevent = async (event, spoke) => {
  process.stdout.write(`${JSON.stringify({ from: spoke.id, ...event })}\n`)
  if (echo) await hub.send(spoke, { ...event, type: 'echo' })
}
process.stdout.write(`${hub.ticket}\n`)

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    await hub.close()
    process.exit(0)
  })
}

let number = 0
for await (const line of createInterface({ input: process.stdin })) {
  number += 1
  if (line.trim() === '') continue
  try {
    const { to, ...event } = JSON.parse(line)
    await (to === undefined ? hub.broadcast(event) : hub.send(to, event))
  } catch (error) {
    console.error(`line ${number} is skipped: ${explain(error)}`)
  }
}
