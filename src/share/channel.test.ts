/** The connection between a primary and its secondaries: who is admitted, what is passed on, and how it ends. */
import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, it } from 'node:test';
import { dmaError, throwsDma } from '../../test/shared/errors.js';
import { ownPlaces } from '../../test/shared/places.js';
import { until } from '../../test/shared/until.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { DmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { Range } from '../ranges.js';
import { connectToPrimary, type Connected } from './connect.js';
import { MAX_MESSAGE_FDS, type Answer, type PeerOwner } from './peer.js';
import { runningEals, socketIn } from './places.js';
import { Regions } from './regions.js';
import { Server, type Method, type Session } from './server.js';
import { errorFromWire, errorToWire, PROTOCOL } from './wire.js';

const platform = openPlatform();
const folder = ownPlaces();

describe('the channel of a primary', { skip: platform.limitation ?? false }, () => {
  const open: { close(): unknown }[] = [];
  afterEach(async () => {
    for (const each of open.splice(0).reverse()) await each.close();
  });

  const nothing: PeerOwner = { answer: () => undefined, closed: () => undefined };

  function serve(methods: Record<string, Method> = {}, name = 'store', on = platform): Server & { left: Session[] } {
    const left: Session[] = [];
    const server = new Server(on, {
      name,
      version: '1.0.0',
      timeoutMs: 5000,
      methods: new Map(Object.entries(methods)),
      joined: () => undefined,
      left: (session) => void left.push(session),
    });
    open.push(server);
    return Object.assign(server, { left });
  }

  async function attach(owner = nothing, name = 'store', on = platform): Promise<Connected> {
    const connected = await connectToPrimary(on, name, owner, {
      timeoutMs: 5000,
      version: '1.0.0',
      label: 'worker',
      keepAlive: false,
    });
    open.push({ close: () => connected.peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' })) });
    return connected;
  }

  /** A socket that has said nothing yet. */
  function stranger(): number {
    const fd = platform.sockets.connect(socketIn(join(folder, 'anydma'), 'store'));
    open.push({ close: () => platform.files.close(fd) });
    return fd;
  }

  /** Has the other side hung up? */
  const isOver = (fd: number) => (): boolean => platform.sockets.receive(fd, new Uint8Array(65536), 16)?.bytes === 0;

  it('is in a folder that nobody else can enter', () => {
    serve();
    assert.equal(statSync(join(folder, 'anydma')).mode & 0o777, 0o700);
  });

  it('refuses a folder that others can enter, or that is a link or a file', async () => {
    const place = join(folder, 'anydma');
    rmSync(place, { recursive: true, force: true });
    mkdirSync(place, { mode: 0o700 });
    chmodSync(place, 0o755);
    throwsDma('EACCES', () => serve(), /can be entered by others/);
    rmSync(place, { recursive: true });
    mkdirSync(join(folder, 'elsewhere'), { mode: 0o700 });
    symlinkSync(join(folder, 'elsewhere'), place);
    throwsDma('EACCES', () => serve(), /the folder of sockets, .*, is a link/);
    await assert.rejects(attach(), dmaError('EACCES', /is a link/));
    assert.deepEqual(readdirSync(join(folder, 'elsewhere')), []);
    rmSync(place);
    writeFileSync(place, '');
    throwsDma('EACCES', () => serve(), /is no folder/);
    rmSync(place);
  });

  it('has one primary for a name, and names its process to the second one', () => {
    serve();
    throwsDma('EADDRINUSE', () => serve(), new RegExp(`process ${process.pid} .*"store"`));
    assert.deepEqual(
      runningEals(platform).map(({ name, pid }) => ({ name, pid })),
      [{ name: 'store', pid: process.pid }],
    );
  });

  it('leaves no socket, and replaces that of a dead primary', async () => {
    const path = socketIn(join(folder, 'anydma'), 'store');
    await serve().close();
    assert.ok(!existsSync(path));
    // A listening socket that is closed without removing its path, as by a process that is killed.
    platform.files.close(platform.sockets.listen(path, 1));
    assert.deepEqual(runningEals(platform), []);
    await assert.rejects(attach(), dmaError('ENOENT', /no process of this user is a primary with the name "store"/));
    serve();
    await attach();
  });

  it('names the primaries that there are, where one is not found', async () => {
    serve();
    await assert.rejects(
      attach(nothing, 'other'),
      dmaError('ENOENT', new RegExp(`the names are: store, in ${folder}`)),
    );
    for (const name of ['', '../x', 'a/b', '.hidden', 'x'.repeat(32)])
      await assert.rejects(attach(nothing, name), dmaError('EINVAL'));
  });

  it('answers questions with objects, descriptors and errors with all their parts', async () => {
    const failure = new DmaError({
      code: 'EBUSY',
      operation: 'zones.free',
      reason: 'it is in use',
      range: new Range(0x1000, 0x2000),
      device: 'vdev:edu0',
      hint: 'wait',
      cause: new DmaError({ code: 'ENOMEM', operation: 'mmap', reason: 'no memory' }),
      undo: [new Error('undone badly')],
    });
    let sent = 0;
    serve({
      twice: (_, { fields }) => ({ result: { number: 2 * fields.number('number') } }),
      file: (): Answer => {
        const fd = platform.memory.memfd({ name: 'x', length: 4096 });
        platform.files.writeAt(fd, 0, Buffer.from('hello'));
        return { fds: [fd], sent: () => (sent++, platform.files.close(fd)) };
      },
      fails: () => {
        throw failure;
      },
      breaks: () => Promise.reject(new TypeError('a bug')),
    });
    const { peer } = await attach();
    assert.equal((await peer.ask('twice', { number: 21 })).fields.number('number'), 42);
    const { fds } = await peer.ask('file');
    const bytes = Buffer.alloc(5);
    platform.files.readAt(fds[0], 0, bytes);
    platform.files.close(fds[0]);
    assert.deepEqual([bytes.toString(), sent], ['hello', 1]);
    await assert.rejects(peer.ask('fails'), (error) => {
      assert.ok(error instanceof DmaError);
      assert.equal(error.message, failure.message.replace('Error: undone badly', 'Error: Error: undone badly'));
      const { code, errno, operation, reason, device, hint } = error;
      assert.deepEqual(
        { code, errno, operation, reason, device, hint, range: error.range?.toString() },
        {
          code: 'EBUSY',
          errno: 16,
          operation: 'zones.free',
          reason: 'it is in use',
          device: 'vdev:edu0',
          hint: 'wait',
          range: '[0x1000, 0x3000)',
        },
      );
      assert.ok(dmaError('ENOMEM', /no memory/)(error.cause));
      return true;
    });
    await assert.rejects(peer.ask('breaks'), dmaError('EIO', /a bug/));
    await assert.rejects(peer.ask('unknown'), dmaError('ENOSYS'));
    await assert.rejects(peer.ask('twice', { number: 'x' }), dmaError('EPROTO'));
    await assert.rejects(peer.ask('twice', { text: 'x'.repeat(300_000) }), dmaError('E2BIG'));
    assert.equal((await peer.ask('twice', { number: 4 })).fields.number('number'), 8, 'the connection goes on');
  });

  it('knows no error that it can not tell', () => {
    for (const wire of [undefined, 7, {}, { code: 'EWHAT' }, { code: 'EIO', range: { start: -1, length: 2 }, undo: 3 }])
      assert.equal(errorFromWire(wire, 'x').code, 'EIO');
    let deep: unknown;
    for (let n = 0; n < 100; n++) deep = new DmaError({ code: 'EIO', operation: 'x', reason: 'y', cause: deep });
    assert.ok(JSON.stringify(errorToWire(deep)).length < 1000);
  });

  it('closes descriptors that nobody takes, on both ends', async () => {
    const tracking = trackingPlatform(platform);
    const server = serve({ ignore: () => undefined }, 'store', tracking);
    const { peer } = await attach(nothing, 'store', tracking);
    const fd = platform.events.create();
    await peer.ask(
      'ignore',
      {},
      Array.from({ length: MAX_MESSAGE_FDS }, () => fd),
    );
    platform.files.close(fd);
    peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' }));
    await until(() => server.sessions.length === 0);
    await server.close();
    assert.deepEqual(tracking.leaks(), []);
  });

  it('closes descriptors that come with answers to the primary', async () => {
    const tracking = trackingPlatform(platform);
    const server = serve({}, 'store', tracking);
    const fd = platform.events.create();
    await attach({ answer: () => ({ fds: [fd] }), closed: () => undefined });
    const { peer } = server.sessions[0];
    peer.tell('memory.remove');
    const begun = peer.begin('memory.add', {}, []);
    await peer.ask('window');
    await begun.settled();
    platform.files.close(fd);
    await server.close();
    assert.deepEqual(tracking.leaks(), []);
  });

  it('gives back what a secondary had, in reverse, when its connection ends', async () => {
    const back: string[] = [];
    const server = serve({
      take: (session, { fields }) => {
        const what = fields.string('what');
        const forget = session.own(() => void back.push(what));
        if (what === 'forgotten') forget();
        return {};
      },
    });
    const { peer } = await attach();
    server.sessions[0].clean = true;
    for (const what of ['first', 'forgotten', 'second']) await peer.ask('take', { what });
    assert.match(server.sessions[0].label, /^process \d+ \(worker\)$/);
    peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' }));
    await until(() => back.length === 2);
    assert.deepEqual(back, ['second', 'first']);
    assert.equal(server.left.length, 1);
  });

  it('keeps what a secondary had as long as its process goes on, if it did not let go', async () => {
    const back: string[] = [];
    const server = serve({ take: (session) => (session.own(() => void back.push('it')), {}) });
    const { peer } = await attach();
    await peer.ask('take');
    peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' }));
    await until(() => server.left.length === 1);
    assert.deepEqual([back, server.isUsed], [[], true]);
    await server.close();
    assert.deepEqual([back, server.isUsed], [['it'], false]);
  });

  it('has no memory mapped in a secondary that has ended meanwhile', async () => {
    const server = serve();
    const { peer } = await attach();
    const [session] = server.sessions;
    peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' }));
    await until(() => server.left.length === 1);
    const regions = new Regions(platform, 5000, () => undefined);
    await assert.rejects(regions.join(session), dmaError('ECONNRESET'));
  });

  it('tells a secondary once that the primary stops, and fails its calls', async () => {
    const told: DmaError[] = [];
    let arrived = false;
    const server = serve({ never: () => ((arrived = true), new Promise(() => undefined)) });
    const { peer } = await attach({ answer: () => undefined, closed: (error) => void told.push(error) });
    const asked = peer.ask('never', {}, [], Infinity);
    await until(() => arrived);
    await server.close();
    await assert.rejects(asked, dmaError('ECONNRESET'));
    await assert.rejects(peer.ask('never'), dmaError('ECONNRESET'));
    assert.equal(told.length, 1);
  });

  it('gives up questions that are not answered in time, and goes on', async () => {
    serve({ never: () => new Promise(() => undefined), now: () => ({}) });
    const { peer } = await attach();
    await assert.rejects(peer.ask('never', {}, [], 20), dmaError('ETIMEDOUT', /within 20 ms/));
    await peer.ask('now');
  });

  it('answers many questions at once, and no more than it can keep', async () => {
    let running = 0;
    let most = 0;
    serve({
      slow: async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setImmediate(resolve));
        running--;
        return {};
      },
    });
    const { peer } = await attach();
    await Promise.all(Array.from({ length: 500 }, () => peer.ask('slow')));
    assert.ok(most <= 64, String(most));
  });

  it('ends connections that begin with anything but a hello, or with nonsense', async () => {
    serve();
    const header = (size: number, flags = 0): Uint8Array => {
      const bytes = new Uint8Array(16);
      new DataView(bytes.buffer).setUint32(4, size, true);
      bytes[8] = flags;
      return bytes;
    };
    const document = (value: unknown): Uint8Array => {
      const text = Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
      return Buffer.concat([header(16 + text.length), text]);
    };
    for (const bytes of [
      header(3),
      header(2 ** 31),
      header(16, 7),
      document('{'),
      document([]),
      document({ ask: 7 }),
      document({ ask: 'x', with: [] }),
      document({ ask: 'memory' }),
      document('['.repeat(100_000)),
    ]) {
      const fd = stranger();
      platform.sockets.send(fd, bytes, 0, []);
      await until(isOver(fd), Buffer.from(bytes).toString('latin1').slice(0, 60));
    }
    await attach();
  });

  it('is not kept from others by connections that say nothing', async () => {
    const server = serve();
    const fds: number[] = [];
    for (let n = 0; n < 40; n++) {
      fds.push(stranger());
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => fds.some((fd) => isOver(fd)()));
    await attach();
    assert.equal(server.sessions.length, 1);
  });

  it('refuses another version of the protocol, and says which ones', async () => {
    serve();
    const { Peer } = await import('./peer.js');
    const peer = new Peer(platform, platform.sockets.connect(socketIn(join(folder, 'anydma'), 'store')), nothing, {
      operation: 'Eal.attach',
      timeoutMs: 5000,
      keepAlive: false,
      takesFds: true,
    });
    open.push({ close: () => peer.close(new DmaError({ code: 'ECANCELED', operation: 'x', reason: 'y' })) });
    await assert.rejects(
      peer.ask('hello', { protocol: PROTOCOL + 1, version: '9.9.9' }),
      dmaError('EPROTONOSUPPORT', /version \d+ of the protocol .*9\.9\.9/),
    );
  });
});
