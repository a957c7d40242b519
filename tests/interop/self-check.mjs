// Checks the clients of the other languages against each other, without the Rust hub: the hub in
// JavaScript, on Node and on Deno, and spokes on Node, Deno and Python, several of each at once.
// Run it with `node tests/interop/self-check.mjs` after `tests/interop/install`. It ends within LIMIT_MS
// and leaves no process behind.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import process from 'node:process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const LIMIT_MS = 120_000
const BROADCASTS = 200
const LARGE = 'ä'.repeat(512 * 1024)

const root = join(dirname(fileURLToPath(import.meta.url)), '../..')
const ours = (path, otherwise) => (existsSync(join(root, path)) ? join(root, path) : otherwise)
const node = [process.env.NODE ?? 'node']
const deno = [process.env.DENO ?? ours('tests/interop/node_modules/.bin/deno', 'deno'), 'run', '--quiet', '--allow-all']
const python = [process.env.PYTHON ?? ours('tests/interop/.venv/bin/python', 'python3')]
const javascript = (name) => join(root, 'examples/javascript', name)
const CLIENTS = {
  node: [...node, javascript('spoke.mjs')],
  deno: [...deno, javascript('spoke.mjs')],
  python: [...python, join(root, 'examples/python/spoke.py')],
}

const children = new Set()
const killAll = () => {
  for (const child of children) child.kill('SIGKILL')
}
process.on('exit', killAll)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))
setTimeout(() => {
  console.error(`self-check: not done after ${LIMIT_MS / 1000} s, while ${stage}`)
  process.exit(1)
}, LIMIT_MS).unref()
let stage = 'starting'

/** A running client: its lines as they come, and how it ended. */
class Client {
  lines = []
  stderr = ''
  #woken = []

  constructor(name, [program, ...args]) {
    this.name = name
    this.child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] })
    children.add(this.child)
    this.child.stdin.on('error', () => {})
    this.child.stderr.on('data', (data) => {
      this.stderr += data
    })
    createInterface({ input: this.child.stdout }).on('line', (line) => {
      this.lines.push(line)
      this.#wake()
    })
    this.exit = new Promise((resolve, reject) => {
      this.child.on('error', reject)
      this.child.on('close', (code, signal) => {
        children.delete(this.child)
        this.ended = true
        this.#wake()
        resolve(code ?? signal)
      })
    })
  }

  #wake() {
    for (const wake of this.#woken.splice(0)) wake()
  }

  /** The first `count` lines, once they are there. */
  async first(count) {
    while (this.lines.length < count) {
      assert(!this.ended, `${this.name} ended after ${this.lines.length} of ${count} lines: ${this.stderr}`)
      await new Promise((resolve) => this.#woken.push(resolve))
    }
    return this.lines.slice(0, count)
  }

  async exits(code) {
    assert.equal(await this.exit, code, `${this.name}: ${this.stderr}`)
  }
}

async function startHub(runtime, ...args) {
  const hub = new Client(`hub on ${runtime[0]}`, [...runtime, javascript('hub.mjs'), '--local', ...args])
  const [ticket] = await hub.first(1)
  return { hub, ticket }
}

async function stopHub(hub) {
  hub.child.kill('SIGTERM')
  await hub.exits(0)
}

async function everyoneHearsEverything(runtime) {
  const { hub, ticket } = await startHub(runtime, '--echo')
  const spokes = []
  for (const [kind, number] of [['node', 3], ['deno', 2], ['python', 3]]) {
    for (let i = 0; i < number; i += 1) {
      const name = `${kind} ${i}`
      const hello = { type: 'hello', id: name, payload: { from: name, text: 'grüß dich, 世界' } }
      const args = [ticket, '--local', '--count', String(BROADCASTS + 3), '--send', JSON.stringify(hello)]
      spokes.push({ hello, client: new Client(name, [...CLIENTS[kind], ...args]) })
    }
  }
  // A spoke that was heard has joined.
  const heard = (await hub.first(1 + spokes.length)).slice(1).map((line) => JSON.parse(line))
  for (const { hello } of spokes) {
    const { from, ...event } = heard.find((event) => event.id === hello.id)
    assert.match(from, /^[0-9a-f]{64}$/)
    assert.deepEqual(event, hello)
  }
  const events = Array.from({ length: BROADCASTS }, (_, n) => ({ type: 'tick', id: `t${n}`, payload: { n, half: n / 2 } }))
  events.push({ type: 'large', id: 'large', payload: LARGE }, { type: 'end', id: 'end', payload: null })
  for (const event of events) hub.child.stdin.write(`${JSON.stringify(event)}\n`)
  for (const { hello, client } of spokes) {
    await client.exits(0)
    const got = client.lines.map((line) => JSON.parse(line))
    assert.deepEqual(got, [{ ...hello, type: 'echo' }, ...events], `${client.name} got something else`)
  }
  await stopHub(hub)
  return spokes.length
}

async function repliesAndGoodbyes(runtime) {
  const { hub, ticket } = await startHub(runtime)
  const spokes = Object.entries(CLIENTS).map(
    ([kind, client]) => new Client(kind, [...client, ticket, '--local', '--reply', '--send', '{"type":"hello"}']),
  )
  await hub.first(1 + spokes.length)
  hub.child.stdin.write('not JSON\n{"type":"question","id":"q","payload":1}\n')
  const replies = (await hub.first(1 + 2 * spokes.length)).slice(1 + spokes.length).map((line) => JSON.parse(line))
  for (const reply of replies) assert.deepEqual([reply.type, reply.payload], ['reply', { to: 'q', type: 'question' }])
  assert.equal(new Set(replies.map((reply) => reply.from)).size, spokes.length)
  assert.match(hub.stderr, /line 1 is skipped/)
  await stopHub(hub)
  for (const spoke of spokes) await spoke.exits(0)
}

async function refusals(runtime) {
  const { hub, ticket } = await startHub(runtime, '--allow', '0'.repeat(64))
  for (const [kind, client] of Object.entries(CLIENTS)) {
    const refused = new Client(`${kind}, refused`, [...client, ticket, '--local', '--count', '1', '--send', '{"type":"hello"}'])
    const lost = new Client(`${kind}, no ticket`, [...client, 'endpointnonsense', '--local'])
    await refused.exits(3)
    assert.equal(refused.stderr, 'closed by the hub: this hub does not admit you (code 2)\n')
    await lost.exits(4)
    assert.match(lost.stderr, /^could not connect: [^\n]+\n$/)
  }
  assert.equal(hub.lines.length, 1)
  await stopHub(hub)
}

/** Bytes that are not the protocol, each as the whole of a stream. What is too long gets code 4, the others 3. */
const HOSTILE = {
  'a length of 4 GiB': [255, 255, 255, 255],
  'a length just above the limit': [1, 0, 64, 1],
  'half a length': [0, 0],
  'half a frame': [0, 0, 0, 9, 123],
  'not UTF-8': framed([34, 255, 34]),
  'not JSON': framed('{"type":"a","id":"b","payload":NaN}'),
  'a list': framed('["a","b",1]'),
  'a type that is a number': framed('{"type":1,"id":"b","payload":1}'),
  'an id that is a number': framed('{"type":"a","id":7}'),
  'no type': framed('{"id":"b","payload":1}'),
  'an empty type': framed('{"type":""}'),
  'nested beyond reason': framed('['.repeat(200_000)),
}

function framed(body) {
  const bytes = typeof body === 'string' ? [...Buffer.from(body)] : body
  const head = Buffer.alloc(4)
  head.writeUInt32BE(bytes.length)
  return [...head, ...bytes]
}

/** An endpoint without our module between it and the peer. */
async function rawEndpoint() {
  const { Endpoint, EndpointTicket, RelayMode, presetMinimal } = createRequire(javascript('alkpubsub.mjs'))('@number0/iroh')
  const alpn = [...Buffer.from('alkpubsub/1')]
  const builder = Endpoint.builder()
  presetMinimal(builder)
  builder.relayMode(RelayMode.disabled())
  builder.bindAddr('127.0.0.1:0')
  builder.bindAddr('[::1]:0')
  builder.alpns([alpn])
  const endpoint = await builder.bind()
  globalThis.endpoints ??= []
  globalThis.endpoints.push(endpoint)
  return {
    ticket: EndpointTicket.fromAddr(endpoint.addr()).toString(),
    accept: async () => (await (await endpoint.acceptNext()).accept()).connect(),
    connect: (ticket) => endpoint.connect(EndpointTicket.fromString(ticket).endpointAddr(), alpn),
  }
}

async function hostileBytesGetACodeAndCostNobodyElse(runtime) {
  const raw = await rawEndpoint()
  const { hub, ticket } = await startHub(runtime)
  const bystander = new Client('bystander', [...CLIENTS.node, ticket, '--local', '--count', '1', '--send', '{"type":"hello"}'])
  await hub.first(2)
  for (const [what, bytes] of Object.entries(HOSTILE)) {
    const connection = await raw.connect(ticket)
    const { send } = await connection.openBi()
    await send.writeAll(bytes)
    await send.finish()
    const code = what.startsWith('a length') ? 4 : 3
    assert.match(await connection.closed(), new RegExp(`^closed by peer: .+ \\(code ${code}\\)$`, 's'), what)
  }
  hub.child.stdin.write('{"type":"still here"}\n')
  await bystander.exits(0)
  assert.equal(hub.lines.length, 2)
  await stopHub(hub)
}

async function spokesSurviveAHostileHub() {
  const raw = await rawEndpoint()
  for (const [what, bytes] of Object.entries(HOSTILE)) {
    const clients = Object.entries(CLIENTS).map(
      ([kind, program]) => new Client(`${kind}: ${what}`, [...program, raw.ticket, '--local']),
    )
    // Which of them it is does not matter: each gets the same.
    for (const _ of clients) {
      const connection = await raw.accept()
      const { send } = await connection.acceptBi()
      await send.writeAll(framed('{"type":"fine","more":1}').concat(bytes))
      await send.finish()
    }
    for (const client of clients) {
      await client.exits(6)
      assert.deepEqual(client.lines, ['{"type":"fine","id":"","payload":null}'])
      assert.match(client.stderr, /^not the protocol: [^\n]+\n$/)
    }
  }
}

async function run(name, check, runtime) {
  stage = name
  const begun = Date.now()
  await check(runtime)
  console.log(`ok: ${stage} (${Date.now() - begun} ms)`)
}

for (const [name, runtime] of Object.entries({ node, deno })) {
  for (const check of [everyoneHearsEverything, repliesAndGoodbyes, refusals, hostileBytesGetACodeAndCostNobodyElse]) {
    await run(`${check.name}, hub on ${name}`, check, runtime)
  }
}
await run(spokesSurviveAHostileHub.name, spokesSurviveAHostileHub)
console.log('self-check: all is well')
process.exit(0)
