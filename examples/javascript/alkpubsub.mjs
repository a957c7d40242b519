// alkpubsub/1: a spoke and a small hub over iroh, for Node 20 and Deno 2. Copy this file.
//
//   const spoke = await connect(ticket)
//   await spoke.send({ type: 'order.placed', payload: { n: 1 } })
//   for await (const event of spoke) console.log(event.type, event.payload)
//   console.log(spoke.closeReason)
//
// A message is a u32 big-endian length and that many bytes of JSON {"type","id","payload"}. A length
// of zero is a frame that carries nothing.
//
// What the binding wants, and does not say:
// - bytes are arrays of numbers, not Uint8Array, and cost accordingly: a few MB/s;
// - parallel `writeAll` calls on one stream overtake each other, so each stream has one Writer;
// - `read` gives an empty array at the end of the stream, again and again;
// - an endpoint that is garbage-collected takes its connections along, so `alive` holds them;
// - an error's message goes on with places in its source and a backtrace: see `explain`;
// - the `watch...` functions abort the process, so nothing here calls them.

import { randomUUID } from 'node:crypto'
import { Endpoint, EndpointAddr, EndpointTicket, RelayMode, presetMinimal, presetN0 } from '@number0/iroh'

export const ALPN = 'alkpubsub/1'
/** The longest frame that either side accepts: an event of 16 MiB and room for its envelope. */
export const MAX_FRAME = 16 * 1024 * 1024 + 16 * 1024
/** The codes with which either side closes a connection, the same for clients in all languages. */
export const CLOSE = Object.freeze({ goodbye: 1n, refused: 2n, badFrame: 3n, tooLarge: 4n, timedOut: 5n, fellBehind: 7n })

/** Bytes that go through the binding in one call. */
const CHUNK = 64 * 1024
/** Above this many bytes for one spoke, `await hub.broadcast()` waits for it. */
const HIGH_WATER = 1024 * 1024
/** Above this many bytes for one spoke, the hub closes it: someone did not await `broadcast`. */
const MAX_PENDING = 2 * MAX_FRAME
/** How long a peer may take for a step before it is given up on. */
const STEP_MS = 10_000
/** How long `close` waits for the peer to have what was sent. */
const DRAIN_MS = 2_000
/** Bi-streams that one connection may have open at a hub. */
const STREAMS_PER_CONNECTION = 16n

const alpn = Array.from(new TextEncoder().encode(ALPN))
const alive = new Set()

// ---- frames ----------------------------------------------------------------------------------

/** What a peer sent is not the protocol; `code` is what it is told. */
export class ProtocolError extends Error {
  name = 'ProtocolError'
  code = CLOSE.badFrame
}

function tooLarge(length) {
  const error = new ProtocolError(`a frame of ${length} bytes is longer than ${MAX_FRAME}`)
  error.code = CLOSE.tooLarge
  return error
}

/** `{ type, payload, id? }` as a frame, and the envelope that is in it. */
export function encode({ type, id = randomUUID(), payload = null }) {
  if (typeof type !== 'string' || typeof id !== 'string' || type === '') {
    throw new TypeError('an event has a type and an id, both of them strings, and the type is not empty')
  }
  const envelope = { type, id, payload }
  const body = new TextEncoder().encode(JSON.stringify(envelope))
  if (body.length > MAX_FRAME) {
    throw new RangeError(`an event of ${body.length} bytes is longer than the ${MAX_FRAME} that a frame can be`)
  }
  const frame = new Uint8Array(4 + body.length)
  new DataView(frame.buffer).setUint32(0, body.length)
  frame.set(body, 4)
  return { envelope, frame }
}

/** The event in a frame's body. Without an id it is '', without a payload null; other fields are passed over. */
export function decode(body) {
  let value
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body))
  } catch (cause) {
    throw new ProtocolError('a frame is not JSON in UTF-8', { cause })
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new ProtocolError('a frame is not a JSON object')
  }
  const { type, id = '', payload = null } = value
  if (typeof type !== 'string' || type === '') throw new ProtocolError('an envelope has no "type" that is a string and not empty')
  if (typeof id !== 'string') throw new ProtocolError('the "id" of an envelope is not a string')
  return { type, id, payload }
}

const EMPTY_FRAME = new Uint8Array(4)

/** The bodies of the frames on a stream, the empty ones too. Memory grows with what arrived, not with what was announced. */
async function* frames(recv) {
  let chunks = []
  let held = 0
  const take = async (length) => {
    while (held < length) {
      const chunk = await recv.read(CHUNK)
      if (chunk.length === 0) return null
      chunks.push(Uint8Array.from(chunk))
      held += chunk.length
    }
    const all = concat(chunks, held)
    held -= length
    chunks = held > 0 ? [all.subarray(length)] : []
    return all.subarray(0, length)
  }
  for (;;) {
    const head = await take(4)
    if (head === null && held === 0) return
    if (head === null) throw new ProtocolError('the stream ended inside a frame')
    const length = new DataView(head.buffer, head.byteOffset).getUint32(0)
    if (length > MAX_FRAME) throw tooLarge(length)
    const body = await take(length)
    if (body === null) throw new ProtocolError('the stream ended inside a frame')
    yield body
  }
}

function concat(chunks, length) {
  if (chunks.length === 1) return chunks[0]
  const all = new Uint8Array(length)
  let at = 0
  for (const chunk of chunks) {
    all.set(chunk, at)
    at += chunk.length
  }
  return all
}

/** Writes frames one after the other, many small ones in one call. */
class Writer {
  pending = 0
  #stream
  #queue = []
  #running = null
  #failed = null

  constructor(stream) {
    this.#stream = stream
  }

  /** Resolves when QUIC has taken the frame. */
  write(frame) {
    if (this.#failed !== null) return Promise.reject(this.#failed)
    return new Promise((resolve, reject) => {
      this.pending += frame.length
      this.#queue.push({ frame, resolve, reject })
      this.#running ??= this.#run()
    })
  }

  async #run() {
    while (this.#queue.length > 0) {
      const batch = [this.#queue.shift()]
      let length = batch[0].frame.length
      while (this.#queue.length > 0 && length + this.#queue[0].frame.length <= CHUNK) {
        batch.push(this.#queue.shift())
        length += batch.at(-1).frame.length
      }
      try {
        if (this.#failed !== null) throw this.#failed
        const bytes = concat(batch.map((entry) => entry.frame), length)
        for (let at = 0; at < length; at += CHUNK) {
          await this.#stream.writeAll(Array.from(bytes.subarray(at, at + CHUNK)))
        }
        this.pending -= length
        for (const entry of batch) entry.resolve()
      } catch (error) {
        this.#failed = error
        this.pending -= length
        for (const entry of batch) entry.reject(error)
      }
    }
    this.#running = null
  }

  /** Writes what is queued, ends the stream and waits until the peer has it all. False if it has not within `limit` ms. */
  finish(limit) {
    const finished = (async () => {
      await this.#running
      await this.#stream.finish()
      await this.#stream.stopped()
      return true
    })().catch(() => false)
    return within(finished, limit, false)
  }
}

// ---- endpoints -------------------------------------------------------------------------------

async function bind({ local = false, secretKey } = {}) {
  const builder = Endpoint.builder()
  if (local) {
    presetMinimal(builder)
    builder.relayMode(RelayMode.disabled())
    // Both: an address family without an address of ours gets a socket that is open to the network.
    builder.bindAddr('127.0.0.1:0')
    builder.bindAddr('[::1]:0')
  } else {
    presetN0(builder)
  }
  if (secretKey !== undefined) builder.secretKey(Array.from(secretKey))
  builder.alpns([alpn])
  const endpoint = await builder.bind()
  alive.add(endpoint)
  return endpoint
}

async function unbind(endpoint) {
  await endpoint.close().catch(() => {})
  alive.delete(endpoint)
}

/** `promise`, or `otherwise` after `limit` ms. */
async function within(promise, limit, otherwise) {
  let timer
  const late = new Promise((resolve) => {
    timer = setTimeout(resolve, limit, otherwise)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** What an error says: of a binding's, its innermost cause, without places in its source and the backtrace. */
export function explain(error) {
  const [text] = String(error?.message ?? error).split('\n\nStack backtrace')
  return text.trim().split('\n').at(-1).trim().replace(/ \([^()]*\.rs:\d+:\d+\)$/, '')
}

/** Why a connection ended, from the binding's text; `code` is null unless the peer gave one. */
function closeReasonOf(text) {
  const [, reason, code, bare] = /^closed by peer: (?:(.*) \(code (\d+)\)|(\d+))$/s.exec(text) ?? []
  if (code === undefined && bare === undefined) return { code: null, reason: text }
  return { code: BigInt(code ?? bare), reason: reason ?? '' }
}

const bytesOf = (text) => Array.from(new TextEncoder().encode(text))

// ---- the spoke -------------------------------------------------------------------------------

/**
 * Joins a hub: a ticket's text, or an EndpointAddr. Options: `local` (loopback only, no relay, no
 * look-up) and `secretKey` (32 bytes; a new identity without it).
 *
 * Resolving does not mean admitted: a hub that refuses closes the connection, and the events end with
 * `closeReason.code` set.
 */
export async function connect(hub, options = {}) {
  const addr = hub instanceof EndpointAddr ? hub : EndpointTicket.fromString(hub).endpointAddr()
  const endpoint = await bind(options)
  try {
    return await Spoke.open(endpoint, await endpoint.connect(addr, alpn))
  } catch (error) {
    await unbind(endpoint)
    throw error
  }
}

/** One stream to a hub. Iterate over it once for the hub's events; it is not read faster than you take them. */
export class Spoke {
  /** Once the events have ended: `{ code, reason }`; code is null unless the hub closed the connection with one. */
  closeReason = null
  #endpoint
  #connection
  #writer
  #recv

  static async open(endpoint, connection) {
    const spoke = new Spoke()
    spoke.#endpoint = endpoint
    spoke.#connection = connection
    try {
      const { send, recv } = await connection.openBi()
      spoke.#recv = recv
      spoke.#writer = new Writer(send)
      // The hub does not see a stream before something was written to it.
      await spoke.#writer.write(EMPTY_FRAME)
    } catch (error) {
      // Refused so soon that there is no stream. The events say why, as for one who is refused later.
      spoke.#writer ??= { write: () => Promise.reject(error), finish: async () => false }
      spoke.#recv ??= { read: () => Promise.reject(error) }
    }
    return spoke
  }

  get id() {
    return this.#endpoint.id().toString()
  }

  /** Sends `{ type, payload, id? }`; gives back the envelope once QUIC has taken it. */
  async send(event) {
    const { envelope, frame } = encode(event)
    await this.#writer.write(frame)
    return envelope
  }

  /** The hub's events. Ends when the hub ends the stream or the connection; throws a ProtocolError on bytes that are not the protocol. */
  async *[Symbol.asyncIterator]() {
    try {
      for await (const body of frames(this.#recv)) {
        if (body.length > 0) yield decode(body)
      }
      this.closeReason = { code: null, reason: 'the hub ended the stream' }
    } catch (error) {
      if (error instanceof ProtocolError) {
        this.#connection.close(error.code, bytesOf(error.message))
        throw error
      }
      const text = await within(this.#connection.closed(), DRAIN_MS, explain(error))
      this.closeReason = closeReasonOf(text)
    }
  }

  /** Waits a little for the hub to have what was sent, then leaves. */
  async close() {
    await this.#writer.finish(DRAIN_MS)
    this.#connection.close(CLOSE.goodbye, bytesOf('the spoke left'))
    await unbind(this.#endpoint)
  }
}

// ---- the hub ---------------------------------------------------------------------------------

/**
 * Sends events to all spokes or to one, and hears theirs. No log and no resume: a spoke joins at the
 * tip, and one that does not keep up is closed.
 *
 *   const hub = await Hub.listen({ local: true })
 *   hub.onevent = (event, spoke) => hub.send(spoke, { type: 'echo', payload: event.payload })
 *   console.log(hub.ticket)
 *   await hub.broadcast({ type: 'tick', payload: 1 })
 */
export class Hub {
  /** Called with `(event, spoke)` for each event from a spoke. The spoke's next one waits for the promise it gives, if any. */
  onevent = () => {}
  /** Called with `(spoke)` when one has joined. */
  onjoin = () => {}
  /** Called with `(spoke, why)` when one is gone. */
  onleave = () => {}
  #endpoint
  #admit
  #spokes = new Set()
  #connections = new Set()

  /** Options: `local` and `secretKey` as for `connect`; `admit(endpointId)` gives (a promise of) true, or false to refuse. */
  static async listen(options = {}) {
    const endpoint = await bind(options)
    return new Hub(endpoint, options.admit ?? (() => true))
  }

  constructor(endpoint, admit) {
    this.#endpoint = endpoint
    this.#admit = admit
    this.#acceptLoop()
  }

  get id() {
    return this.#endpoint.id().toString()
  }

  get ticket() {
    return EndpointTicket.fromAddr(this.#endpoint.addr()).toString()
  }

  get spokes() {
    return [...this.#spokes]
  }

  /** Sends an event to every spoke. Await it to go no faster than the spokes do; gives back the envelope. */
  async broadcast(event) {
    const { envelope, frame } = encode(event)
    await Promise.all(this.spokes.map((spoke) => spoke.offer(frame)))
    return envelope
  }

  /** Sends an event to one spoke, or to all spokes of an endpoint id; gives back the envelope. */
  async send(to, event) {
    const { envelope, frame } = encode(event)
    const spokes = typeof to === 'string' ? this.spokes.filter((spoke) => spoke.id === to) : [to]
    if (spokes.length === 0) throw new Error(`no spoke here is ${to}`)
    await Promise.all(spokes.map((spoke) => spoke.offer(frame)))
    return envelope
  }

  /** Lets the spokes have what was sent to them, within a limit, and says goodbye. */
  async close() {
    await Promise.all(this.spokes.map((spoke) => spoke.writer.finish(DRAIN_MS)))
    for (const connection of this.#connections) connection.close(CLOSE.goodbye, bytesOf('the hub is shutting down'))
    await unbind(this.#endpoint)
  }

  async #acceptLoop() {
    for (;;) {
      const incoming = await this.#endpoint.acceptNext().catch(() => null)
      if (incoming === null) return
      // Not awaited: one connection must not hold up the next.
      this.#serveConnection(incoming).catch(() => {})
    }
  }

  async #serveConnection(incoming) {
    const handshake = incoming.accept().then((accepting) => accepting.connect())
    const connection = await within(handshake, STEP_MS, null)
    if (connection === null) {
      // Too late to be of use, should it ever come.
      handshake.then((late) => late.close(CLOSE.timedOut, bytesOf('the handshake took too long')), () => {})
      return
    }
    const id = connection.remoteId().toString()
    const admitted = await within(Promise.resolve(id).then(this.#admit), STEP_MS, false).catch(() => false)
    if (admitted !== true) {
      connection.close(CLOSE.refused, bytesOf('this hub does not admit you'))
      return
    }
    connection.setMaxConcurrentBiStreams(STREAMS_PER_CONNECTION)
    this.#connections.add(connection)
    try {
      let stream = await within(connection.acceptBi(), STEP_MS, null)
      if (stream === null) connection.close(CLOSE.timedOut, bytesOf('no stream was opened'))
      while (stream !== null) {
        this.#serveStream(connection, id, stream)
        stream = await connection.acceptBi()
      }
    } finally {
      this.#connections.delete(connection)
    }
  }

  /** A stream is a spoke from its first complete frame to its end. */
  async #serveStream(connection, id, { send, recv }) {
    const spoke = new HubSpoke(id, connection, new Writer(send))
    const silent = setTimeout(() => spoke.drop(CLOSE.timedOut, 'no complete frame came'), STEP_MS)
    let why = 'it ended its stream'
    try {
      for await (const body of frames(recv)) {
        clearTimeout(silent)
        if (!this.#spokes.has(spoke)) {
          this.#spokes.add(spoke)
          this.onjoin(spoke)
        }
        if (body.length > 0) await this.onevent(decode(body), spoke)
      }
    } catch (error) {
      why = explain(error)
      if (error instanceof ProtocolError) spoke.drop(error.code, why)
    } finally {
      clearTimeout(silent)
      if (this.#spokes.delete(spoke)) this.onleave(spoke, why)
      await spoke.writer.finish(DRAIN_MS)
    }
  }
}

/** One stream of one peer, as the hub sees it. */
class HubSpoke {
  #connection

  constructor(id, connection, writer) {
    this.id = id
    this.writer = writer
    this.#connection = connection
  }

  drop(code, reason) {
    this.#connection.close(code, bytesOf(reason))
  }

  /** Queues a frame; waits while the spoke is behind; never fails, since whoever sends to all cannot act on one. */
  async offer(frame) {
    if (this.writer.pending > 0 && this.writer.pending + frame.length > MAX_PENDING) {
      this.drop(CLOSE.fellBehind, 'the spoke fell behind')
      return
    }
    const written = this.writer.write(frame).then(() => true, () => true)
    if (this.writer.pending <= HIGH_WATER) return
    if (!(await within(written, STEP_MS, false))) this.drop(CLOSE.fellBehind, 'the spoke took nothing for too long')
  }
}
