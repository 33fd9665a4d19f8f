import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, connect, type Socket, type AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { dmaError } from '../../test/shared/errors.js';
import { DmaError } from '../errors.js';
import { show } from '../show.js';
import {
  connectToPeer,
  listenForPeers,
  type ExchangeOptions,
  type Hello,
  type PeerServer,
  type PeerSession,
} from './exchange.js';

const PAIR = {
  number: 17,
  psn: 5,
  gid: '0000:0000:0000:0000:0000:ffff:0a00:0001',
  lid: 0,
  mtu: 1024,
  reads: 16,
  qkey: 0,
};
const MEMORY = { address: 0x7f0000000000, length: 4096, rkey: 0x1234 };
const HELLO: Hello = { pairs: [PAIR], memory: [MEMORY], data: { name: 'x' } };
const HELLO_LINE = JSON.stringify({ 'anydma-rdma': 1, ...HELLO });

const turn = (): Promise<void> => new Promise(setImmediate);

/** A server and a session with it, from both ends. */
async function both(options: ExchangeOptions = {}): Promise<{
  server: PeerServer;
  a: PeerSession;
  b: PeerSession;
  close: () => Promise<void>;
}> {
  let arrived: (session: PeerSession) => void = () => undefined;
  const other = new Promise<PeerSession>((resolve) => (arrived = resolve));
  const server = await listenForPeers({ host: '127.0.0.1', ...options }, (session) => {
    session.greet({ pairs: [], memory: [] });
    arrived(session);
  });
  const a = await connectToPeer({ host: '127.0.0.1', port: server.port, hello: HELLO, ...options });
  const b = await other;
  return {
    server,
    a,
    b,
    async close() {
      a.close();
      await b.ended;
      await server.close();
    },
  };
}

/** What the server does with a peer that sends these bytes: why the session ended, if it began. */
async function says(
  bytes: string | Buffer,
  options: ExchangeOptions = {},
): Promise<{ reason: string | undefined; got: string }> {
  let reason: Promise<DmaError> | undefined;
  const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 200, ...options }, (session) => {
    reason = session.ended;
    session.greet({ pairs: [], memory: [] });
  });
  const socket = connect(server.port, '127.0.0.1');
  let got = '';
  socket.on('data', (chunk: Buffer) => (got += chunk.toString()));
  socket.on('error', () => undefined);
  socket.write(bytes);
  await once(socket, 'close');
  await server.close();
  return { reason: (await reason)?.reason, got };
}

describe('a session', () => {
  it('tells each side of the other', async () => {
    const { a, b, close } = await both();
    assert.deepEqual(b.hello, HELLO);
    assert.deepEqual(a.hello, { pairs: [], memory: [], data: undefined });
    await Promise.all([a.ready(), b.ready()]);
    await close();
    assert.equal(a.live, false);
    assert.equal((await a.ended).code, 'ECANCELED');
    assert.equal((await b.ended).code, 'ECONNRESET');
    await assert.rejects(a.ask('x', 1), dmaError('ECANCELED'));
  });

  it('answers who asks much at once one question in each turn of the event loop, so that others get theirs', async () => {
    const { a, b, close } = await both();
    let turns = 0;
    const count = (): void => {
      turns++;
      immediate = setImmediate(count);
    };
    let immediate = setImmediate(count);
    const seen: number[] = [];
    b.answer('when', () => void seen.push(turns));
    await Promise.all(Array.from({ length: 50 }, () => a.ask('when', 0)));
    clearImmediate(immediate);
    assert.equal(seen.length, 50);
    assert.ok(new Set(seen).size >= 49, seen.join(' '));
    await close();
  });

  it('answers nothing more to a peer that does not read', async () => {
    let answers = 0;
    let ended: Promise<DmaError> | undefined;
    const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 500 }, (session) => {
      ended = session.ended;
      session.answer('big', () => {
        answers++;
        return 'x'.repeat(2 ** 19);
      });
      session.greet({ pairs: [], memory: [] });
    });
    const socket = connect(server.port, '127.0.0.1');
    socket.on('error', () => undefined).pause();
    socket.write(`${HELLO_LINE}\n`);
    for (let id = 0; id < 200; id++) socket.write(`{"id":${id},"call":"big"}\n`);
    while (ended === undefined) await turn();
    assert.match((await ended).reason, /to read what it asked for/);
    assert.ok(answers > 0 && answers < 200, `${answers} answers`);
    socket.destroy();
    await server.close();
  });

  it('takes 256 arrays inside of each other, and brackets in texts', async () => {
    const nested = (depth: number): string => `${'['.repeat(depth)}${']'.repeat(depth)}`;
    const asks = (depth: number): string =>
      `${HELLO_LINE}\n{"id":1,"call":"x","with":${nested(depth)},"more":"${'[{'.repeat(300)}\\"${'['.repeat(300)}"}\n`;
    assert.match((await says(asks(256))).reason ?? '', /more than 256 arrays inside of each other/);
    assert.match((await says(`${asks(255)}[]\n`)).reason ?? '', /not an object/);
  });

  it('answers questions, with errors too', async () => {
    const { a, b, close } = await both();
    b.answer('double', (value) => Number(value) * 2);
    b.answer('fail', () => {
      throw new DmaError({ code: 'ENOSPC', operation: 'x', reason: 'full\u001b[31m' });
    });
    b.answer('throw', () => {
      throw new TypeError('odd');
    });
    assert.deepEqual(await Promise.all([1, 2, 3].map((value) => a.ask('double', value))), [2, 4, 6]);
    await assert.rejects(a.ask('fail', null), dmaError('ENOSPC', /full \[31m/));
    await assert.rejects(a.ask('throw', null), dmaError('EIO', /odd/));
    await assert.rejects(a.ask('unknown', null), dmaError('ENOTSUP', /no answer to unknown/));
    await assert.rejects(a.ask('big', 'x'.repeat(2 ** 20)), dmaError('E2BIG'));
    assert.equal(a.live, true);
    await close();
  });

  it('explains what a peer was refused', async () => {
    const { a, b, close } = await both();
    const asked: unknown[] = [];
    b.explainFrom({
      explainPeer: (memory, access) => {
        asked.push(memory, access);
        return 'it was unmapped';
      },
    });
    assert.equal(await a.explain(MEMORY, 'write'), 'it was unmapped');
    assert.deepEqual(asked, [MEMORY, 'write']);
    await assert.rejects(a.ask('explain', { address: -1 }), dmaError('EINVAL'));
    await assert.rejects(a.ask('explain', 'x'), dmaError('EIO', /not an object/));
    await close();
  });

  it('does not wait for ever', async () => {
    const { a, b, close } = await both({ timeoutMs: 300 });
    b.answer('never', () => new Promise(() => undefined));
    await assert.rejects(a.ask('never', null), dmaError('ETIMEDOUT', /answer never/));
    assert.equal(a.live, true);
    await assert.rejects(a.ready(), dmaError('ETIMEDOUT', /get ready/));
    assert.equal(a.live, false);
    await close();
  });

  it('keeps answers until they are read, however many there are', async () => {
    const { a, b, close } = await both({ maxLine: 2 ** 16 });
    b.answer('big', (n) => `${String(n)} ${'x'.repeat(2 ** 15)}`);
    const all = await Promise.all(Array.from({ length: 200 }, (_, n) => a.ask('big', n)));
    assert.deepEqual(
      all.map((text) => parseInt(String(text))),
      Array.from({ length: 200 }, (_, n) => n),
    );
    assert.equal(b.live, true);
    await close();
  });

  it('limits what is asked at once', async () => {
    const { a, b, close } = await both();
    b.answer('never', () => new Promise(() => undefined));
    const asked = Array.from({ length: 256 }, () => a.ask('never', null).catch((error: unknown) => error));
    await assert.rejects(a.ask('never', null), dmaError('EBUSY'));
    await close();
    for (const error of await Promise.all(asked)) dmaError('ECANCELED')(error);
  });

  it('is refused where nobody listens, or something else does', async () => {
    const silent = createServer((socket: Socket) => void socket.resume().on('error', () => undefined));
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    const { port } = silent.address() as AddressInfo;
    const options = { host: '127.0.0.1', port, hello: HELLO, timeoutMs: 500 };
    await assert.rejects(connectToPeer(options), dmaError('ETIMEDOUT', /say hello/));
    silent.close();
    const http = createServer((socket: Socket) => void socket.resume().end('HTTP/1.1 400 Bad Request\r\n\r\n'));
    await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
    await assert.rejects(connectToPeer({ ...options, port: (http.address() as AddressInfo).port }), dmaError('EPROTO'));
    http.close();
    await once(http, 'close');
    const gone = await listenForPeers({ host: '127.0.0.1' }, () => undefined);
    await gone.close();
    await assert.rejects(connectToPeer({ ...options, port: gone.port || 1 }), dmaError('ECONNREFUSED', /peer serving/));
    const one = await listenForPeers({ host: '127.0.0.1' }, () => undefined);
    await assert.rejects(
      listenForPeers({ host: '127.0.0.1', port: one.port }, () => undefined),
      dmaError('EADDRINUSE'),
    );
    await one.close();
  });
});

describe('a hostile peer', () => {
  const hello = (more: object): string => `${JSON.stringify({ 'anydma-rdma': 1, pairs: [], memory: [], ...more })}\n`;
  for (const [name, bytes] of Object.entries({
    'sends no JSON': 'GET / HTTP/1.1\r\n\r\n',
    'sends an array': '[]\n',
    'sends nothing of use': '{}\n',
    'speaks another version': hello({ 'anydma-rdma': 2 }),
    'has no lists': hello({ pairs: 5 }),
    'has a bad queue pair': hello({ pairs: [{ ...PAIR, number: '17' }] }),
    'has a bad gid': hello({ pairs: [{ ...PAIR, gid: { length: 39 } }] }),
    'has memory past 2^53': hello({ memory: [{ ...MEMORY, address: 2 ** 53 - 2 }] }),
    'has a bad key': hello({ memory: [{ ...MEMORY, rkey: 2 ** 32 }] }),
    'has too much': hello({ pairs: new Array(1025).fill(PAIR) }),
    'sends bytes': Buffer.from([0xff, 0xfe, 0, 10]),
    'says nothing': '',
    'begins a line and stops': '{"anydma-rdma": 1',
  }))
    it(`that ${name} is sent away`, async () => {
      assert.deepEqual(await says(bytes), { reason: undefined, got: '' });
    });

  it('that names an error as Object.prototype names things gets no further', async () => {
    const names = [
      '__proto__',
      'constructor',
      'toString',
      'hasOwnProperty',
      'valueOf',
      '__defineGetter__',
      'einval',
      '',
    ];
    for (const error of [...names, 5, null, [], {}, true, ['EINVAL']]) {
      const liar = createServer((socket: Socket) => {
        const answer = JSON.stringify({ id: 1, error, reason: error });
        socket.on('error', () => undefined);
        socket.write(`${HELLO_LINE}\n`);
        socket.on('data', (data: Buffer) => {
          if (data.includes('"call"')) socket.write(`${answer}\n`);
        });
      });
      await new Promise<void>((resolve) => liar.listen(0, '127.0.0.1', resolve));
      const { port } = liar.address() as AddressInfo;
      const session = await connectToPeer({ host: '127.0.0.1', port, hello: HELLO });
      const failure: unknown = await session.ask('x', null).catch((thrown: unknown) => thrown);
      assert.ok(failure instanceof DmaError);
      assert.deepEqual([failure.code, failure.errno, failure.operation], ['EIO', 5, 'exchange'], show(error));
      session.close();
      liar.close();
      await once(liar, 'close');
    }
  });

  it('asks what it likes: names, numbers and depths that can not be', async () => {
    const { a, b, close } = await both();
    b.answer('echo', (value) => value);
    for (const name of ['__proto__', 'constructor', 'toString'])
      await assert.rejects(a.ask(name, null), dmaError('ENOTSUP', /there is no answer to/));
    for (const port of [0, -1, 65536, 2 ** 53, 1.5, '1'])
      await assert.rejects(
        a.ask('rdma-cm', { pair: 1, to: 1, port, token: '0'.repeat(32) }),
        dmaError('EINVAL', /takes pair, to, port/),
      );
    assert.deepEqual(await a.ask('echo', JSON.parse('{"__proto__": {"code": "x"}, "a": 1, "a": 2}')), {
      a: 2,
      ['__proto__']: { code: 'x' },
    });
    assert.equal(({} as { code?: unknown }).code, undefined);
    await close();
    const deep = (open: string, end: string): string => open.repeat(100_000) + end.repeat(100_000);
    for (const data of [deep('[', ']'), deep('{"a":', '').slice(0, -1) + '1' + '}'.repeat(100_000)]) {
      const { reason } = await says(`${HELLO_LINE}\n{"id":1,"call":"x","with":${data}}\nnonsense\n`, {
        timeoutMs: 5000,
      });
      assert.match(reason ?? '', /does not speak the protocol/);
    }
  });

  it('that does not read is not kept', async () => {
    const sockets = (): number => process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
    const before = sockets();
    const ended: Promise<DmaError>[] = [];
    const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 200, maxLine: 2 ** 20 }, (session) => {
      session.answer('big', () => 'x'.repeat(2 ** 18));
      ended.push(session.ended);
      session.greet({ pairs: [], memory: [] });
    });
    const peers = Array.from({ length: 5 }, () => connect(server.port, '127.0.0.1'));
    const asks = Array.from({ length: 200 }, (_, id) => `{"id":${id},"call":"big"}\n`).join('');
    for (const peer of peers) {
      peer.on('error', () => undefined);
      peer.pause();
      peer.write(`${HELLO_LINE}\n`);
    }
    while (ended.length < peers.length) await turn();
    for (const peer of peers) peer.write(asks);
    for (const { code, reason } of await Promise.all(ended)) assert.match(`${code} ${reason}`, /ETIMEDOUT .*read what/);
    for (let n = 0; n < 100 && (server.sessions > 0 || sockets() > before + peers.length); n++) await delay(10);
    assert.equal(server.sessions, 0);
    assert.equal(sockets(), before + peers.length);
    for (const peer of peers) peer.destroy();
    await server.close();
  });

  it('that does not read what it was told at last is not kept either', async () => {
    let closed: PeerSession | undefined;
    const server = await listenForPeers({ host: '127.0.0.1', maxLine: 2 ** 26 }, (session) => {
      session.greet({ pairs: [], memory: [], data: 'x'.repeat(2 ** 24) });
      session.close();
      closed = session;
    });
    const peer = connect(server.port, '127.0.0.1');
    peer.on('error', () => undefined);
    peer.pause();
    peer.write(`${HELLO_LINE}\n`);
    while (closed === undefined) await turn();
    assert.equal(server.sessions, 1);
    for (let n = 0; n < 200 && server.sessions > 0; n++) await delay(10);
    assert.equal(server.sessions, 0);
    peer.destroy();
    await server.close();
  });

  it('that closes its half, or all, at any time is gone', async () => {
    for (const end of ['end', 'destroy', 'resetAndDestroy'] as const)
      for (const sent of ['', '{"anyd', `${HELLO_LINE}\n`, `${HELLO_LINE}\n{"id":`]) {
        let ended: Promise<DmaError> | undefined;
        const server = await listenForPeers({ host: '127.0.0.1' }, (session) => {
          ended = session.ended;
          session.greet({ pairs: [], memory: [], data: 'x'.repeat(2 ** 19) });
        });
        const peer = connect({ port: server.port, host: '127.0.0.1', allowHalfOpen: true });
        peer.on('error', () => undefined);
        peer.pause();
        await once(peer, 'connect');
        if (sent !== '') await new Promise((resolve) => peer.write(sent, resolve));
        while (ended === undefined && sent.startsWith(HELLO_LINE)) await turn();
        peer[end]();
        if (ended !== undefined) assert.equal((await ended).code, 'ECONNRESET', `${end} after ${sent.length}`);
        for (let n = 0; n < 100 && server.sessions > 0; n++) await delay(10);
        assert.equal(server.sessions, 0);
        peer.destroy();
        await server.close();
      }
  });

  it('that begins a line has to end it', async () => {
    for (const open of ['{"id": 1', ' ', '\0'])
      assert.match((await says(`${HELLO_LINE}\n${open}`)).reason ?? '', /longer than 200 ms to end a line/);
  });

  it('that says nothing keeps nobody out, nor does one address', async () => {
    const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 30_000, maxSessions: 4 }, (session) =>
      session.greet({ pairs: [], memory: [] }),
    );
    const silent = Array.from({ length: 30 }, () => connect(server.port, '127.0.0.1').on('error', () => undefined));
    await Promise.all(silent.map((socket) => once(socket, 'connect')));
    const options = { host: '127.0.0.1', port: server.port, hello: HELLO };
    const sessions: PeerSession[] = [];
    for (let n = 0; n < 3; n++) sessions.push(await connectToPeer(options));
    assert.equal(server.sessions, 3);
    await assert.rejects(connectToPeer(options), dmaError('ECONNRESET'));
    const other = connect({ port: server.port, host: '127.0.0.1', localAddress: '127.0.0.2' });
    other.write(`${HELLO_LINE}\n`);
    await once(other, 'data');
    assert.equal(server.sessions, 4);
    for (const socket of [...silent, other]) socket.destroy();
    for (const session of sessions) session.close();
    for (let n = 0; n < 100 && server.sessions > 0; n++) await delay(10);
    assert.equal(server.sessions, 0);
    (await connectToPeer(options)).close();
    await server.close();
  });

  it('that says nothing does not keep a server from closing', async () => {
    const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 30_000 }, () => undefined);
    const silent = connect(server.port, '127.0.0.1');
    silent.on('error', () => undefined);
    await once(silent, 'connect');
    await turn();
    await server.close();
    await once(silent, 'close');
  });

  it('that sends an endless line is sent away', async () => {
    assert.equal((await says('x'.repeat(5000), { maxLine: 1000 })).reason, undefined);
    const { reason } = await says(`${HELLO_LINE}\n${'x'.repeat(5000)}`, { maxLine: 1000 });
    assert.match(reason ?? '', /a line of more than 1000 bytes/);
  });

  it('that goes wrong later is sent away', async () => {
    for (const line of ['{"id": -1}', '{"id": 1.5, "call": "x"}', 'null', '{"call": "x"}', HELLO_LINE])
      assert.match((await says(`${HELLO_LINE}\n${line}\n`)).reason ?? '', /does not speak the protocol/, line);
  });

  it('that answers what nobody asked changes nothing', async () => {
    const { a, b, close } = await both();
    b.answer('x', () => 1);
    const raw = connect(0);
    raw.on('error', () => undefined);
    raw.destroy();
    assert.equal(await a.ask('x', null), 1);
    await close();
  });

  it('of many is sent away when there are enough', async () => {
    const server = await listenForPeers({ host: '127.0.0.1', maxSessions: 1, timeoutMs: 1000 }, (session) =>
      session.greet({ pairs: [], memory: [] }),
    );
    const options = { host: '127.0.0.1', port: server.port, hello: HELLO, timeoutMs: 1000 };
    const first = await connectToPeer(options);
    await assert.rejects(connectToPeer(options), dmaError('ECONNRESET'));
    first.close();
    await first.ended;
    await new Promise((resolve) => setTimeout(resolve, 20));
    const second = await connectToPeer(options);
    second.close();
    await server.close();
  });
});
