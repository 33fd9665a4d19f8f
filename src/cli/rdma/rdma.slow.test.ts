import assert from 'node:assert/strict';
import { connect as connectTcp } from 'node:net';
import { once } from 'node:events';
import { describe, test, type TestContext } from 'node:test';
import { dmaError } from '../../../test/shared/errors.js';
import { Eal, KiB, MiB } from '../../index.js';
import { connectToPeer, verbsDriver } from '../../entry/rdma.js';
import { openPlatform } from '../../platform/open.js';
import { until } from '../../../test/shared/until.js';
import { Fabric, type FakeRdmaPlatform } from '../../../test/fakes/rdma/fabric.js';
import type { CommandContext } from '../shared/command.js';
import { copierOf } from '../demo/copier.js';
import { describeRdma } from '../../bus/rdma/facts.js';
import { moveRdma, type RdmaMoveOptions } from './move.js';
import { readPiece, readWish, type Verb } from './protocol.js';
import { fillPattern, wrongAt } from './pattern.js';
import { serveRdma, type RdmaServeOptions } from './serve.js';
import { Listener, Room } from '../../../test/shared/command.js';
import { placeValue } from '../shared/values.js';

interface Moved {
  ok: boolean;
  verified: boolean;
  bytesMoved: number;
  requestsPerSecond: number;
  gigabytesPerSecond: number;
  latency?: { requests: number; least: number; median: number; percentile99: number };
  remote?: { address: string; length: number; rkey: string };
  local: { source: string };
  afterUnmap?: { refused: boolean; code: string; reason: string; explain: string };
}

/** What a command runs in, here. */
function contextOf(output: Listener, signal: AbortSignal): CommandContext {
  const usage = (message: string): never => {
    throw new Error(message);
  };
  return { output, signal, args: [], usage };
}

/** Two hosts and a server on the first. */
async function network(t: TestContext, options: Partial<RdmaServeOptions> = {}) {
  const fabric = new Fabric();
  const host = (ipv4: string): FakeRdmaPlatform => fabric.host(openPlatform(), [{ name: 'rxe0', ipv4 }]);
  const [here, there] = [host('10.0.0.1'), host('10.0.0.2')];
  const said = new Listener(true);
  const stop = new AbortController();
  let ready = (_line: object): void => undefined;
  const isReady = new Promise<object>((resolve) => (ready = resolve));
  said.line = (value) => ready(value);
  const defaults: RdmaServeOptions = { mode: 'external', host: '127.0.0.1', port: 0, memory: 64 * MiB };
  const ended = serveRdma({ ...defaults, ...options }, contextOf(said, stop.signal), there);
  const { port } = (await Promise.race([isReady, ended])) as { port: number };
  const end = async (): Promise<void> => {
    stop.abort();
    await ended;
    assert.deepEqual(there.verbsLeaks(), []);
  };
  t.after(async () => {
    await end();
    assert.deepEqual(here.verbsLeaks(), []);
  });
  const move = async (verb: Verb, more: Partial<RdmaMoveOptions> = {}, signal = new AbortController().signal) => {
    const output = new Listener(false);
    const to = { host: '127.0.0.1', port };
    const options: RdmaMoveOptions = {
      to,
      mode: 'external',
      size: MiB,
      block: 64 * KiB,
      depth: 8,
      iterations: 1,
      ...more,
    };
    await moveRdma(verb, options, contextOf(output, signal), here);
    return { document: output.documents[0] as Moved, output };
  };
  return { here, there, port, said, move, end };
}

describe('anydma rdma, between two emulated hosts', () => {
  for (const verb of ['write', 'read', 'send'] as const)
    for (const mode of ['external', 'heap', 'owned'] as const)
      test(`${verb}, memory ${mode} on both sides`, async (t) => {
        const { move } = await network(t, { mode });
        const { document, output } = await move(verb, { mode, size: 300_001, block: 4096, depth: 7, iterations: 3 });
        assert.deepEqual([document.ok, document.verified, document.bytesMoved], [true, true, 900_003]);
        assert.ok(document.gigabytesPerSecond > 0 && document.requestsPerSecond > 0);
        const { latency, remote } = document;
        assert.ok(latency !== undefined && latency.least > 0 && latency.least <= latency.median);
        assert.ok(latency.median <= latency.percentile99 && latency.requests > 0);
        assert.equal(remote === undefined, verb === 'send');
        assert.match(output.said, new RegExp(`^${verb} +${mode} +\\d.* yes$`, 'm'));
      });

  test('blocks above 64 KiB have no latency measured, and one may be larger than the memory', async (t) => {
    const { move } = await network(t);
    const { document } = await move('write', { size: 50_000, block: MiB, depth: 1 });
    assert.deepEqual([document.verified, document.latency === undefined], [true, false]);
    const large = await move('write', { size: 2 * MiB, block: MiB });
    assert.deepEqual([large.document.verified, large.document.latency], [true, undefined]);
  });

  for (const verb of ['write', 'read'] as const)
    for (const mode of ['external', 'heap', 'owned'] as const)
      test(`${verb} after the server has unmapped ${mode} memory: refused, and explained by the server`, async (t) => {
        const { move, said } = await network(t, { mode });
        const { document, output } = await move(verb, { afterUnmap: true });
        const { refused, code, explain } = document.afterUnmap ?? { refused: false, code: '', explain: '' };
        assert.deepEqual([document.ok, document.verified, refused, code], [true, true, true, 'EACCES']);
        assert.match(
          explain,
          mode === 'external' ? /the peer says: .* was unmapped \d+ ms ago/ : /the peer says: .* closed \d+ ms ago/,
        );
        assert.match(output.said, /the next access was refused: .*REM_ACCESS_ERR/);
        await until(() => said.notes.includes('QP_ACCESS_ERR'));
      });

  test('several clients at the same time, and then others', async (t) => {
    const { move, said } = await network(t);
    const all = await Promise.all(
      (['write', 'read', 'send', 'write'] as const).map((verb) => move(verb, { size: 3 * MiB })),
    );
    assert.ok(all.every(({ document }) => document.ok && document.verified));
    assert.ok((await move('send')).document.verified);
    await until(() => said.notes.split('all its resources are released').length === 6);
  });

  test('what is more than the server has is refused, with the figures; the server goes on', async (t) => {
    const { move } = await network(t, { memory: 4 * MiB });
    await assert.rejects(
      move('write', { size: 5 * MiB }),
      dmaError('ENOSPC', /refused: the client asks for 5 MiB, and 4 MiB of 4 MiB are left/),
    );
    assert.ok((await move('write', { size: 4 * MiB })).document.ok);
    assert.ok((await move('write', { size: 4 * MiB })).document.ok);
  });

  test('an address of the port that is not there is told before anybody is let in', async (t) => {
    await assert.rejects(network(t, { gidIndex: 9 }), dmaError('EINVAL', /no address of index 9/));
  });

  test('a client that is interrupted ends at once, and the server serves the next', async (t) => {
    const { move, said } = await network(t);
    const stop = new AbortController();
    const running = move('write', { size: MiB, iterations: 1_000_000, block: 4096 }, stop.signal);
    await until(() => said.notes.includes('writes to 1 MiB'));
    stop.abort(new Error('enough'));
    await assert.rejects(running, /enough/);
    assert.ok((await move('write')).document.ok);
  });

  test('a server that ends while a client is at work is a clear failure', async (t) => {
    const { move, said, end } = await network(t);
    const running = move('send', { size: MiB, iterations: 1_000_000, block: 4096 });
    const failed = assert.rejects(running, dmaError('ECONNRESET', /closed the connection/));
    await until(() => said.notes.includes('sends to 1 MiB'));
    await end();
    await failed;
  });
});

describe('the server of anydma rdma, and clients that mean ill', () => {
  /** A client that says what it likes. */
  const hostile = async (t: TestContext, data: unknown) => {
    const net = await network(t, { memory: 8 * MiB });
    const eal = await Eal.start({ platform: net.here });
    const device = await eal.probe('rdma:rxe0');
    const pair = device.use(verbsDriver).createQueuePair();
    const session = await connectToPeer({
      host: '127.0.0.1',
      port: net.port,
      hello: { pairs: [pair.address], memory: [], data },
    });
    const leave = async (): Promise<void> => {
      session.close();
      await eal.stop();
    };
    return { ...net, eal, device, pair, session, leave };
  };

  for (const [what, data] of [
    ['nothing', undefined],
    ['no verb', { size: 4096, block: 4096, depth: 1 }],
    ['another verb', { verb: 'withdraw', size: 4096, block: 4096, depth: 1 }],
    ['no size', { verb: 'write', block: 4096, depth: 1 }],
    ['a negative size', { verb: 'write', size: -4096, block: 4096, depth: 1 }],
    ['a size beyond all', { verb: 'write', size: 2 ** 52, block: 4096, depth: 1 }],
    ['a block above the memory', { verb: 'send', size: 4096, block: 8192, depth: 1 }],
    ['blocks of nothing', { verb: 'send', size: 4096, block: 0, depth: 1 }],
    ['too many requests', { verb: 'send', size: 4096, block: 1, depth: 2 ** 31 }],
    ['texts for numbers', { verb: 'send', size: '4096', block: '1', depth: '1' }],
  ] as const)
    test(`a hello that asks for ${what} is refused`, async (t) => {
      const { session, leave, move } = await hostile(t, data);
      assert.ok('refused' in (session.hello.data as object));
      assert.deepEqual(session.hello.memory, []);
      await leave();
      assert.ok((await move('write')).document.ok);
    });

  test('pieces outside of its memory, of more than a step, or several at once are refused', async (t) => {
    const { session, pair, leave, move } = await hostile(t, { verb: 'write', size: 8192, block: 4096, depth: 1 });
    await session.join(pair);
    const ask = (question: unknown) => session.ask('fill', question);
    for (const part of [
      { offset: 8192, length: 1 },
      { offset: 4096, length: 4097 },
      { offset: -1, length: 1 },
      { offset: 0, length: 2 ** 40 },
      {},
    ])
      await assert.rejects(ask({ seed: 1, messages: 0, ...part }), dmaError('EINVAL', /peer says/));
    await assert.rejects(ask(null), dmaError('EINVAL', /peer says/));
    const good = { seed: 1, messages: 0, offset: 0, length: 8192 };
    // Questions are answered in turns; a piece whose messages have not come is waited for, and no other one meanwhile.
    const [one, two] = await Promise.allSettled([ask({ ...good, messages: 1 }), ask(good)]);
    const told = [one, two].map((each) => (each.status === 'rejected' ? String(each.reason) : 'answered'));
    assert.match(told.join('\n'), /0 of 1 messages have arrived\n.*one piece at a time$/);
    await ask(good);
    await session.ask('withdraw', {});
    await assert.rejects(ask(good), dmaError('ECANCELED'));
    await leave();
    assert.ok((await move('read')).document.ok);
  });

  test('an access past the end, of another kind, or elsewhere is refused, and harms nobody else', async (t) => {
    const { session, pair, eal, device, leave, move, said } = await hostile(t, {
      verb: 'write',
      size: 4096,
      block: 4096,
      depth: 1,
    });
    await session.join(pair);
    const memory = eal.external.allocate(8192);
    device.dmaMap(memory);
    const [remote] = session.hello.memory;
    const local = { va: memory.va, length: 4096 };
    await pair.write({ local, remote });
    const good = move('write', { size: 4 * MiB, iterations: 4 });
    await assert.rejects(pair.read({ local, remote }), dmaError('EACCES', /peers, who have write access/));
    await until(() => said.notes.includes('QP_ACCESS_ERR'));
    assert.ok((await good).document.ok);
    await leave();
  });

  test('messages longer than the receive that is posted end that session only', async (t) => {
    const { session, pair, eal, device, leave, move } = await hostile(t, {
      verb: 'send',
      size: 4096,
      block: 64,
      depth: 2,
    });
    await session.join(pair);
    const memory = eal.external.allocate(8192);
    device.dmaMap(memory);
    await pair.send({ local: { va: memory.va, length: 64 } });
    await assert.rejects(
      pair.send({ local: { va: memory.va, length: 65 } }),
      dmaError('EINVAL', /longer than the posted receive/),
    );
    await session.ended;
    await leave();
    assert.ok((await move('send')).document.ok);
  });

  test('what is not the protocol is not answered for long', async (t) => {
    const { port, move } = await network(t);
    for (const bytes of ['GET / HTTP/1.1\r\n\r\n', '{}\n', '\0'.repeat(100), '[1]\n']) {
      const socket = connectTcp({ host: '127.0.0.1', port });
      socket.on('error', () => undefined);
      await once(socket, 'connect');
      socket.end(bytes);
      socket.resume();
      await once(socket, 'close');
    }
    assert.ok((await move('write')).document.ok);
  });
});

describe('the parts of anydma rdma', () => {
  test('patterns tell the first byte that differs, whatever is before and behind', () => {
    for (const [length, offset] of [
      [1, 0],
      [4096, 0],
      [4099, 8],
      [13, 3],
      [5, 2 ** 33 + 1],
    ] as const) {
      const bytes = new Uint8Array(length);
      fillPattern(bytes, 7, offset);
      assert.equal(wrongAt(bytes, 7, offset), -1);
      assert.notEqual(wrongAt(bytes, 8, offset), -1);
      for (const at of [0, length >> 1, length - 1]) {
        bytes[at] ^= 1;
        assert.equal(wrongAt(bytes, 7, offset), offset + at);
        bytes[at] ^= 1;
      }
    }
    const whole = new Uint8Array(64);
    fillPattern(whole, 9, 0);
    const part = new Uint8Array(11);
    fillPattern(part, 9, 21);
    assert.deepEqual(part, whole.slice(21, 32));
  });

  test('wishes and pieces are read whole, or not at all', () => {
    const wish = { verb: 'read', size: 5000, block: 4096, depth: 3 };
    assert.deepEqual(readWish({ ...wish, more: 1 }), wish);
    assert.throws(() => readWish({ ...wish, size: 1.5 }), dmaError('EINVAL'));
    const piece = { seed: 2 ** 32 - 1, offset: 4096, length: 904, messages: 0 };
    assert.deepEqual(readPiece(piece, 5000), piece);
    assert.throws(() => readPiece({ ...piece, length: 905 }, 5000), dmaError('EINVAL'));
  });

  test('hosts, with ports and without', () => {
    const read = placeValue(7);
    assert.deepEqual(read('node2'), { host: 'node2', port: 7 });
    assert.deepEqual(read('192.0.2.1:99'), { host: '192.0.2.1', port: 99 });
    assert.deepEqual(read('2001:db8::1'), { host: '2001:db8::1', port: 7 });
    assert.deepEqual(read('[2001:db8::1]:99'), { host: '2001:db8::1', port: 99 });
    for (const text of ['', ':99', 'a:0', 'a:70000', '[::1', 'a:b'])
      assert.throws(() => read(text), /A host is written/);
  });

  test('RDMA devices in tables and in documents', () => {
    const platform = new Fabric().host(openPlatform(), [
      { name: 'rxe0', ipv4: '10.0.0.1' },
      { name: 'rxe1', ipv4: '10.0.1.1', onDemand: true },
    ]);
    const { document, text } = describeRdma(platform.verbs);
    const [first, second] = document.rdma as Record<string, unknown>[];
    assert.deepEqual(
      [first.name, first.onDemandPaging, second.onDemandPaging],
      ['rdma:rxe0', 'none', 'explicit and implicit'],
    );
    const [{ state, gids }] = first.ports as { state: string; gids: { ipv4?: string }[] }[];
    assert.equal(state, 'active');
    assert.ok(gids.some(({ ipv4 }) => ipv4 === '10.0.0.1'));
    assert.equal((first.limits as { regions: number }).regions, 1000);
    const output = new Listener(false);
    output.show(text);
    assert.match(output.said, /^rdma:rxe0 +ib .* none +1000/m);
    assert.match(output.said, /^rxe1\/1 +active +ethernet [^]* 10\.0\.1\.1$/m);
    assert.deepEqual(platform.verbsLeaks(), []);
  });

  for (const how of ['mapped for writing by peers', 'mapped by the library'] as const)
    test(`an RDMA device copies to memory that is ${how}, and is refused after the unmap`, async () => {
      const platform = new Fabric().host(openPlatform(), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
      const eal = await Eal.start({ platform });
      const device = await eal.probe('rdma:rxe0');
      const about = await device.describe();
      assert.equal((about?.document.rdma as { name: string }).name, 'rdma:rxe0');
      const copier = copierOf(device);
      const [from, to] = [eal.external.allocate(3 * MiB), eal.external.allocate(3 * MiB)];
      const mapping = device.dmaMap(from, { access: 'read' });
      device.dmaMap(to, how === 'mapped by the library' ? {} : copier.destination);
      fillPattern(from.bytes(), 1, 0);
      for (let n = 0; n < 2; n++) await copier.copy(from.va, to.va, 3 * MiB - 5);
      assert.equal(wrongAt(to.bytes(0, 3 * MiB - 5), 1, 0), -1);
      assert.deepEqual([...to.bytes(3 * MiB - 5)], [0, 0, 0, 0, 0]);
      mapping.unmap();
      const refused = await copier.copy(from.va, to.va, 4096).catch((error: unknown) => error);
      assert.ok(copier.isRefusal(refused), String(refused));
      assert.match(String(refused), /LOC_PROT_ERR/);
      device.dmaMap(from);
      await copier.copy(from.va, to.va, 4096);
      await eal.stop();
      assert.deepEqual(platform.verbsLeaks(), []);
    });
});

describe('anydma rdma as users run it', { concurrency: 2 }, () => {
  test('--help teaches', async () => {
    using room = new Room();
    const group = await room.call(['rdma', '--help']);
    assert.match(group.stdout, /serve .*\n[^]*write .*\n[^]*read .*\n[^]*send .*\n/);
    const { stdout } = await room.call(['rdma', 'write', '--help']);
    for (const text of [
      '--to <host>',
      '--block <size>',
      '--depth <n>',
      '--after-unmap',
      '--gid-index',
      'Examples:',
      'latency',
    ])
      assert.ok(stdout.includes(text), text);
    assert.doesNotMatch((await room.call(['rdma', 'send', '--help'])).stdout, /after-unmap/);
  });

  test('wrong usage names the command that is meant', async () => {
    using room = new Room();
    const { status, stderr } = await room.call(['rdma', 'write', '--to', 'a:b']);
    assert.equal(status, 2);
    assert.match(stderr, /A host is written like/);
    assert.match(stderr, /"anydma rdma write --help" shows/);
  });

  test('a machine without the device says so, with a hint', async () => {
    using room = new Room();
    const { status, stdout, stderr } = await room.run([
      'rdma',
      'write',
      '--to',
      'localhost',
      '--device',
      'rdma:none0',
      '--json',
    ]);
    assert.equal(status, 1);
    assert.equal((JSON.parse(stdout) as { ok: boolean }).ok, false);
    assert.match(stderr, /^anydma: open: .*\nhint: /);
  });
});
