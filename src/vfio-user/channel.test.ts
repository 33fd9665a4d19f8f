import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmaError, isDmaError } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';
import { trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { Channel, pump } from './channel.js';
import type { ChannelOwner } from './channel.js';
import { HEADER_SIZE, MAX_MESSAGE, put16, put32 } from './messages.js';
import type { Message } from './messages.js';
import { inMemoryPlatform } from '../../test/fakes/vfio-user/sockets.js';

const skip = openPlatform().limitation ?? false;

function encode(id: number, payload: number): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + payload).fill(id);
  put16(bytes, 0, id);
  put32(bytes, 4, bytes.length);
  return bytes;
}

class Owner implements ChannelOwner {
  readonly messages: { id: number; length: number; fds: number }[] = [];
  error: DmaError | undefined;
  done = false;

  constructor(private readonly until = Infinity) {}

  onMessage(message: Message): void {
    this.messages.push({ id: message.id, length: message.payload.length, fds: message.fds.length });
    this.done = this.messages.length >= this.until;
  }

  onClose(error: DmaError): void {
    assert.equal(this.error, undefined, 'closed once');
    this.error = error;
    this.done = true;
  }
}

/** Both ends of a connection on `base`, and proof afterwards that nothing is left. */
function connected(
  base: Platform,
  until?: number,
): { platform: Platform; a: Channel; b: Channel; ofA: Owner; ofB: Owner; end: () => void } {
  const platform = trackingPlatform(base);
  const [x, y] = platform.sockets.pair();
  const [ofA, ofB] = [new Owner(), new Owner(until)];
  const [a, b] = [new Channel(platform, x, ofA), new Channel(platform, y, ofB)];
  const end = (): void => {
    const reason = new DmaError({ code: 'ECONNABORTED', operation: 'test', reason: 'the test ends' });
    a.close(reason);
    b.close(reason);
    assert.deepEqual(platform.leaks(), []);
  };
  return { platform, a, b, ofA, ofB, end };
}

test('messages larger than the socket go through in pieces, descriptors with their first byte', { skip }, () => {
  const { platform, a, b, ofB, end } = connected(openPlatform(), 6);
  const fd = platform.memory.memfd({ name: 'test', length: 4096 });
  a.send(encode(1, 8));
  a.send(encode(2, 600_000), [fd]);
  a.send(encode(3, 8), [fd, fd]);
  a.send(encode(4, 0));
  a.send(encode(5, 400_000));
  a.send(encode(6, 1), [fd]);
  platform.files.close(fd);
  assert.ok(pump(platform, [a, b], ofB, 5000));
  assert.deepEqual(ofB.messages, [
    { id: 1, length: 8, fds: 0 },
    { id: 2, length: 600_000, fds: 1 },
    { id: 3, length: 8, fds: 2 },
    { id: 4, length: 0, fds: 0 },
    { id: 5, length: 400_000, fds: 0 },
    { id: 6, length: 1, fds: 1 },
  ]);
  end();
});

test('the event loop moves them too', { skip }, async () => {
  const { a, ofB, end } = connected(openPlatform());
  for (let id = 1; id <= 20; id++) a.send(encode(id, 50_000));
  while (ofB.messages.length < 20) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(
    ofB.messages.map(({ id }) => id),
    Array.from({ length: 20 }, (_, i) => i + 1),
  );
  end();
});

test('pieces of any size make the same messages', () => {
  for (const chunk of [1, 7, 16, 33]) {
    const base = inMemoryPlatform(openPlatform(), { chunk });
    const { platform, a, b, ofB, end } = connected(base, 3);
    for (const id of [1, 2, 3]) a.send(encode(id, id * 20));
    assert.ok(pump(platform, [a, b], ofB, 1000));
    assert.deepEqual(
      ofB.messages.map(({ length }) => length),
      [20, 40, 60],
    );
    end();
  }
});

test('who does not read is told no more after a while', () => {
  const { a, end } = connected(inMemoryPlatform(openPlatform()));
  let sent = 0;
  while (a.send(encode(1, 500_000))) sent++;
  assert.ok(sent * 500_000 <= 8 * MAX_MESSAGE + 300_000 && sent > 4, `${sent}`);
  assert.equal(a.failure, undefined);
  end();
});

test('what is paused waits, and goes on', () => {
  const platform = inMemoryPlatform(openPlatform());
  const { a, b, ofB, end } = connected(platform);
  ofB.onMessage = function (this: Owner, message: Message): void {
    this.messages.push({ id: message.id, length: 0, fds: 0 });
    if (message.id === 2) b.pause();
  };
  for (let id = 1; id <= 5; id++) a.send(encode(id, 10));
  platform.run();
  assert.deepEqual(
    ofB.messages.map(({ id }) => id),
    [1, 2],
  );
  b.resume();
  platform.run();
  assert.equal(ofB.messages.length, 5);
  end();
});

test('nonsense closes with EPROTO and death with ECONNRESET, and descriptors are not left open', { skip }, () => {
  for (const [what, code] of [
    ['size', 'EPROTO'],
    ['handler', 'EPROTO'],
    ['descriptors', 'EPROTO'],
    ['middle', 'EPROTO'],
    ['death', 'ECONNRESET'],
    ['half', 'ECONNRESET'],
  ] as const) {
    const platform = trackingPlatform(openPlatform());
    const [raw, fd] = platform.sockets.pair();
    const owner = new Owner();
    if (what === 'handler')
      owner.onMessage = () => {
        throw new TypeError('made to fail');
      };
    const channel = new Channel(platform, fd, owner);
    const memfd = platform.memory.memfd({ name: 'test', length: 4096 });
    const bytes = encode(1, 32);
    if (what === 'size') put32(bytes, 4, MAX_MESSAGE + 1);
    if (what === 'half' || what === 'middle') platform.sockets.send(raw, bytes.subarray(0, 20), 0, [memfd]);
    if (what === 'middle') platform.sockets.send(raw, bytes.subarray(20, 30), 0, [memfd]);
    if (what === 'size' || what === 'handler') platform.sockets.send(raw, bytes, 0, [memfd]);
    if (what === 'descriptors')
      platform.sockets.send(
        raw,
        bytes,
        0,
        Array.from({ length: 20 }, () => memfd),
      );
    if (what === 'death' || what === 'half') platform.files.close(raw);
    pump(platform, [channel], owner, 1000);
    assert.ok(isDmaError(owner.error, code), `${what}: ${String(owner.error)}`);
    assert.equal(channel.failure, owner.error);
    platform.files.close(memfd);
    if (what !== 'death' && what !== 'half') platform.files.close(raw);
    assert.deepEqual(platform.leaks(), [], what);
  }
});

test('what waits is dropped with its descriptors when the channel closes', { skip }, () => {
  const { platform, a, end } = connected(openPlatform());
  const fd = platform.memory.memfd({ name: 'test', length: 4096 });
  for (let n = 0; n < 10; n++) a.send(encode(n, 100_000), [fd]);
  platform.files.close(fd);
  end();
});

test('the time of a pump ends', { skip }, () => {
  const { platform, a, ofA, end } = connected(openPlatform());
  assert.equal(pump(platform, [a], ofA, 5), false);
  end();
});

test(
  'descriptors that this process has no room for are its own limit, and no nonsense of the other side',
  { skip },
  () => {
    const base = openPlatform();
    let short = false;
    const receive: typeof base.sockets.receive = (fd, into, most) => {
      const received = base.sockets.receive(fd, into, most);
      if (!short || received === undefined || received.fds.length === 0) return received;
      // As the kernel does when RLIMIT_NOFILE is reached: what came is lost, and it says that there was more.
      received.fds.forEach((each) => base.files.close(each));
      return { ...received, fds: [], truncated: true };
    };
    const { platform, a, b, ofB, end } = connected({ ...base, sockets: { ...base.sockets, receive } });
    const fd = platform.memory.memfd({ name: 'test', length: 4096 });
    short = true;
    a.send(encode(1, 8), [fd]);
    platform.files.close(fd);
    pump(platform, [a, b], ofB, 5000);
    assert.equal(ofB.error?.code, 'EMFILE');
    assert.match(ofB.error.hint ?? '', /RLIMIT_NOFILE/);
    end();
  },
);

test('descriptors that nobody took from a connection are not left to the close of its socket', { skip }, () => {
  const base = openPlatform();
  const closed: number[] = [];
  const closeForeign = (fd: number): void => {
    closed.push(fd);
    base.files.closeForeign(fd);
  };
  const platform = { ...base, files: { ...base.files, closeForeign } };
  const [a, b] = platform.sockets.pair();
  const channel = new Channel(platform, a, { onMessage: () => undefined, onClose: () => undefined });
  const event = platform.events.create();
  for (let n = 0; n < 3; n++) platform.sockets.send(b, new Uint8Array(16), 0, [event, event]);
  channel.close(new DmaError({ code: 'ECONNABORTED', operation: 'test', reason: 'the test ends' }));
  assert.equal(closed.length, 6);
  platform.files.close(event);
  platform.files.close(b);
});
