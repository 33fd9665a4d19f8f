/** What still reaches memory when it is freed: it never faults, and never meets the next owner. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomFill } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, read, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { promisify } from 'node:util';
import { runInThisContext } from 'node:vm';
import { ERRNO, isDmaError, type ErrorCode } from '../errors.js';
import { loadLibc } from '../platform/linux/libc.js';
import { openPlatform } from '../platform/open.js';
import { hugePagesForTest } from '../../test/shared/real-hugepages.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { MAP_SHARED, PROT_READ } from '../platform/uapi/mman.js';
import { KiB, MiB, TiB, type Va } from '../units.js';
import { AreaIndex } from './area-index.js';
import { External, type AllocateOptions } from './external.js';
import { collected } from '../../test/shared/garbage.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;

function error(code: ErrorCode, ...texts: string[]): (thrown: unknown) => true {
  return (thrown) => {
    if (!isDmaError(thrown)) throw thrown;
    assert.equal(thrown.code, code, thrown.message);
    for (const text of texts) assert.ok(thrown.message.includes(text), thrown.message);
    return true;
  };
}

function setup() {
  const platform = trackingPlatform(real);
  const external = new External(platform, new AreaIndex());
  return { platform, external };
}

/** A line of /proc/self/status, in bytes. */
function status(line: string): number {
  const text = real.kernel.readText('/proc/self/status') ?? '';
  return Number(new RegExp(`^${line}:\\s*(\\d+)`, 'm').exec(text)?.[1]) * KiB;
}

function mappings(): number {
  return (real.kernel.readText('/proc/self/maps') ?? '').split('\n').length;
}

/** What may be done at an address, by /proc/self/maps; `undefined` when nothing is mapped. */
function mode(va: number): string | undefined {
  for (const [, from, to, found] of (real.kernel.readText('/proc/self/maps') ?? '').matchAll(/^(\w+)-(\w+) (\S+)/gm))
    if (parseInt(from, 16) <= va && va < parseInt(to, 16)) return found;
  return undefined;
}

/** Moves what `view` is on into another ArrayBuffer, as everybody can on all versions of Node. */
async function moved(view: Uint8Array): Promise<Uint8Array> {
  const stream = new ReadableStream({
    type: 'bytes',
    pull(controller) {
      controller.byobRequest?.respond(1);
    },
  });
  const { value } = await stream.getReader({ mode: 'byob' }).read(view);
  assert.ok(value !== undefined);
  return new Uint8Array(value.buffer);
}

const SOURCES: [string, AllocateOptions][] = [
  ['a memfd', {}],
  ['anonymous memory', { source: 'anonymous' }],
];

describe('views that are about when memory is unregistered', { skip }, () => {
  for (const [name, options] of SOURCES)
    test(`${name}: the memory goes at once, the addresses when the views are collected`, async () => {
      const { platform, external } = setup();
      const { waiting } = external.retired;
      const memory = external.allocate(4 * PAGE, options);
      const { va } = memory;
      let view: Uint8Array | undefined = memory.bytes();
      view.fill(1);
      memory.unregister();
      assert.deepEqual([platform.leaks(), platform.retired().length, mode(va)], [[], 1, 'rw-p']);
      assert.deepEqual(external.retired.waiting, {
        ranges: waiting.ranges + 1,
        bytes: waiting.bytes + 4 * PAGE,
      });
      assert.equal(view.length, 0);
      const next = external.allocate(4 * PAGE, options);
      assert.notEqual(next.va, va);
      next.unregister();
      view = undefined;
      await collected(() => platform.retired().length === 0);
      assert.equal(mode(va), undefined);
    });

  test('where no view was handed out, the addresses go at once too', () => {
    const { platform, external } = setup();
    for (const [, options] of SOURCES) {
      const memory = external.allocate(4 * PAGE, options);
      memory.unregister();
      assert.deepEqual([platform.retired(), platform.leaks(), mode(memory.va)], [[], [], undefined]);
    }
  });

  test('views of parts count as well, and so do those of files and of private mappings', async () => {
    const { platform, external } = setup();
    const directory = mkdtempSync(join(tmpdir(), 'retired-'));
    writeFileSync(join(directory, 'file'), Buffer.alloc(2 * PAGE, 7));
    const use = (flags: string): void => {
      const fd = openSync(join(directory, 'file'), flags);
      const memory = external.fromFd(fd);
      closeSync(fd);
      const part = memory.bytes(PAGE, 10);
      assert.equal(part[0], 7);
      memory.unregister();
      // What may only be read has a mapping for devices, of which no view was handed out, and one for views.
      assert.equal(mode(memory.va), flags === 'r' ? undefined : 'rw-p');
      assert.equal(platform.retired().length, flags === 'r' ? 1 : 2);
    };
    use('r');
    use('r+');
    rmSync(directory, { recursive: true });
    await collected(() => platform.retired().length === 0);
    assert.deepEqual(platform.leaks(), []);
  });

  test('the views of memory at an address are emptied, and the memory stays the caller’s', async () => {
    const { platform, external } = setup();
    const va = real.memory.map({ length: PAGE });
    const memory = external.fromAddress(va, PAGE);
    const view = memory.bytes();
    view[0] = 9;
    memory.unregister();
    assert.deepEqual([view.length, platform.retired()], [0, []]);
    const again = external.fromAddress(va, PAGE);
    assert.equal(again.bytes()[0], 9);
    const escaped = await moved(again.bytes());
    again.unregister();
    assert.equal(escaped[0], 9);
    assert.deepEqual(platform.retired(), []);
  });

  test('hugepages are free again at once', async (context) => {
    const { platform, external } = setup();
    const pages = hugePagesForTest(platform, 2);
    if (typeof pages === 'string') return context.skip(pages);
    const free = (): number | undefined => real.limits.freeHugePages(2 * MiB);
    const before = free();
    try {
      const use = (options: AllocateOptions): void => {
        const memory = external.allocate(4 * MiB, { ...options, hugePageSize: 2 * MiB });
        const view = memory.bytes().fill(1);
        memory.unregister();
        assert.deepEqual([view.length, free()], [0, before]);
      };
      for (const [, options] of SOURCES) use(options);
      await collected(() => platform.retired().length === 0);
    } finally {
      pages.giveBack();
    }
    assert.deepEqual(platform.leaks(), []);
    return undefined;
  });
});

describe('work in other threads', { skip }, () => {
  test('crypto.randomFill and fs.read go on, hit nobody, and the addresses wait for them', async () => {
    const { platform, external } = setup();
    const length = 32 * MiB;
    const directory = mkdtempSync(join(tmpdir(), 'late-'));
    writeFileSync(join(directory, 'in'), Buffer.alloc(length, 7));
    const fd = openSync(join(directory, 'in'), 'r');
    const readAsync = promisify(read);
    const works: ((view: Uint8Array) => Promise<unknown>)[] = [
      promisify(randomFill),
      (view) => readAsync(fd, view, 0, length, 0),
    ];
    const use = async (work: (view: Uint8Array) => Promise<unknown>): Promise<void> => {
      const memory = external.allocate(length);
      const { va } = memory;
      const running = work(memory.bytes());
      memory.unregister();
      const others = Array.from({ length: 3 }, () => external.allocate(length));
      for (const other of others) assert.ok(Math.abs(other.va - va) >= length, 'the addresses were given away');
      let done = false;
      const end = running.then(() => (done = true));
      for (const other of others) assert.equal(other.bytes().indexOf(7, 0), -1);
      await end;
      assert.ok(done);
      for (const other of others) {
        assert.ok(other.bytes(0, MiB).every((byte) => byte === 0));
        other.unregister();
      }
    };
    for (const work of works) await use(work);
    closeSync(fd);
    rmSync(directory, { recursive: true });
    await collected(() => platform.retired().length === 0);
    assert.deepEqual(platform.leaks(), []);
  });

  test('memory that is lent can not be unregistered before the work is done', async () => {
    const { platform, external } = setup();
    const memory = external.allocate(MiB);
    const result = memory.lend(
      async (bytes) => {
        assert.equal(bytes.length, PAGE);
        await promisify(randomFill)(bytes);
        return 'done' as const;
      },
      { offset: PAGE, length: PAGE, reason: 'the test fills it' },
    );
    assert.throws(() => memory.unregister(), error('EBUSY', 'the test fills it'));
    assert.equal(await result, 'done');
    assert.ok(memory.bytes(PAGE, PAGE).some((byte) => byte !== 0));
    await assert.rejects(
      memory.lend(() => Promise.reject(new Error('mine'))),
      { message: 'mine' },
    );
    await assert.rejects(
      memory.lend(() => {
        throw new Error('at once');
      }),
      { message: 'at once' },
    );
    await assert.rejects(
      memory.lend(() => undefined, { offset: 2 * MiB }),
      error('EINVAL'),
    );
    memory.unregister();
    await assert.rejects(
      memory.lend(() => undefined),
      error('EINVAL', 'not registered any more'),
    );
    await collected(() => platform.retired().length === 0);
  });
});

describe('views that were transferred away', { skip }, () => {
  for (const [name, options] of SOURCES)
    test(`${name}: bytes() says so, and what was moved reads zeros afterwards and meets nobody`, async () => {
      const { platform, external } = setup();
      const { ranges } = external.retired.escaped;
      const memory = external.allocate(2 * PAGE, options);
      const { va } = memory;
      memory.bytes().fill(3);
      const escaped = await moved(memory.bytes());
      assert.deepEqual([escaped.length, escaped[PAGE]], [2 * PAGE, 3]);
      assert.throws(() => memory.bytes(), error('EINVAL', 'transferred away'));
      assert.equal(external.bytesAt(va, 1)?.[0], 3, 'devices still reach it');
      memory.unregister();
      assert.ok(escaped.every((byte) => byte === 0));
      assert.equal(external.retired.escaped.ranges, ranges + 1);
      escaped.fill(4);
      for (let round = 0; round < 20; round++) {
        const other = external.allocate(2 * PAGE, options);
        assert.ok(other.bytes().every((byte) => byte === 0));
        other.unregister();
      }
      await collected(() => platform.retired().length === 1);
      assert.equal(mode(va), 'rw-p');
      assert.deepEqual(platform.leaks(), []);
      assert.ok(escaped.every((byte) => byte === 4));
    });

  test('ArrayBuffer.transfer does the same', { skip: !('transfer' in ArrayBuffer.prototype) }, () => {
    const { external } = setup();
    const memory = external.allocate(PAGE);
    memory.bytes().fill(3);
    const transfer: unknown = Reflect.get(ArrayBuffer.prototype, 'transfer');
    assert.ok(typeof transfer === 'function');
    const buffer: unknown = Reflect.apply(transfer, memory.bytes().buffer, []);
    assert.ok(buffer instanceof ArrayBuffer);
    memory.unregister();
    assert.deepEqual(new Uint8Array(buffer), new Uint8Array(PAGE));
  });

  test('registered memory whose ArrayBuffer goes, as that of a WebAssembly.Memory that grows, says so', () => {
    const { external } = setup();
    const made: unknown = runInThisContext('new WebAssembly.Memory({ initial: 1, maximum: 2 })');
    const wasm = made as { readonly buffer: ArrayBuffer; grow(pages: number): number };
    const memory = external.register(wasm.buffer);
    assert.equal(memory.bytes().length, 64 * KiB);
    wasm.grow(1);
    assert.throws(() => memory.bytes(), error('EINVAL', 'WebAssembly.Memory'));
    memory.unregister();
  });
});

describe('limits', { skip }, () => {
  test('30,000 rounds with a turn of the event loop now and then grow nothing', async () => {
    const external = new External(real, new AreaIndex());
    const round = (): void => {
      const memory = external.allocate(16 * KiB);
      memory.bytes()[0] = 1;
      memory.unregister();
    };
    const facts = (): Record<string, number> => ({
      // How much garbage V8 lets grow old is not this library's.
      rss: (status('VmRSS') - process.memoryUsage().heapTotal) / MiB,
      heap: process.memoryUsage().heapUsed / MiB,
      addresses: status('VmSize') / MiB,
      descriptors: real.kernel.list('/proc/self/fd').length,
      mappings: mappings(),
    });
    const run = async (rounds: number): Promise<void> => {
      for (let i = 0; i < rounds; i++) {
        round();
        if (i % 500 === 0) await turn();
      }
      await collected(() => external.retired.waiting.ranges === 0);
    };
    await run(3_000);
    const before = facts();
    await run(30_000);
    const after = facts();
    const text = JSON.stringify({ before, after });
    assert.ok(after.rss < before.rss + 80, text);
    assert.ok(after.heap < before.heap + 40, text);
    assert.ok(after.addresses < before.addresses + 256, text);
    assert.equal(after.descriptors, before.descriptors, text);
    assert.ok(after.mappings < before.mappings + 1000, text);
  });

  test('neighbouring addresses that wait are one mapping of the kernel', async () => {
    const { platform, external } = setup();
    const views: Uint8Array[] = [];
    const before = mappings();
    for (let i = 0; i < 500; i++) {
      const memory = external.allocate(PAGE);
      views.push(memory.bytes());
      memory.unregister();
    }
    assert.equal(external.retired.waiting.ranges >= 500, true);
    assert.ok(mappings() < before + 50, `${before} ${mappings()}`);
    views.length = 0;
    await collected(() => platform.retired().length === 0);
  });

  test('too much that waits: EBUSY says what to do, the memory stays, and it works after turns of the event loop', async () => {
    const { platform, external } = setup();
    await collected(() => external.retired.waiting.ranges === 0);
    const made = Array.from({ length: 9 }, () => external.allocate(2 * TiB, { populate: false }));
    const last = made[8];
    for (const memory of made) memory.bytes(0, 1)[0] = 1;
    for (const memory of made.slice(0, 8)) memory.unregister();
    assert.throws(
      () => last.unregister(),
      error('EBUSY', '16 TiB, wait until their views are collected', 'turns of the event loop'),
    );
    assert.deepEqual([last.live, last.bytes(0, 1)[0]], [true, 1]);
    // Nobody collects here but the library.
    for (let i = 0; i < 1000 && last.live; i++) {
      await turn();
      try {
        last.unregister();
      } catch (thrown) {
        error('EBUSY')(thrown);
      }
    }
    assert.equal(last.live, false);
    await collected(() => platform.retired().length === 0);
    assert.deepEqual(platform.leaks(), []);
  });

  test('addresses that the system does not take are tried again', async () => {
    const tracking = trackingPlatform(real);
    const failing = failingPlatform(tracking, { cleanup: true });
    const external = new External(failing, new AreaIndex());
    await collected(() => external.retired.waiting.ranges === 0);
    const use = (): void => {
      const memory = external.allocate(PAGE);
      memory.bytes();
      memory.unregister();
    };
    use();
    failing.failCall(1, 'ENOMEM', 'memory.unmap');
    await collected(() => failing.failed() !== undefined);
    assert.equal(tracking.retired().length, 1);
    use();
    await collected(() => tracking.retired().length === 0);
    assert.equal(external.retired.waiting.ranges, 0);
  });

  test('at vm.max_map_count: ENOMEM, the memory is still there, and it goes when there is room', () => {
    const { memory } = real;
    const libc = loadLibc();
    assert.ok(typeof libc !== 'string');
    const three = memory.map({ length: 3 * PAGE });
    const external = new External({ ...real, memory: { ...memory, map: () => (three + PAGE) as Va } }, new AreaIndex());
    const middle = external.allocate(PAGE, { source: 'anonymous' });
    const fd = memory.memfd({ name: 'many', length: PAGE });
    const limit = Number(real.kernel.readText('/proc/sys/vm/max_map_count'));
    // Nothing may grow once there is no mapping left for it, so that the place for all is taken here.
    const many = new Float64Array(limit + 2);
    let count = 0;
    let guarded = 0;
    let failure: unknown;
    let errno = 0;
    let tries: unknown;
    try {
      // The same page again and again: such mappings do not merge.
      try {
        for (;;) {
          const va = memory.map({ length: PAGE, fd });
          many[count++] = va;
        }
      } catch (refused) {
        failure = refused;
      }
      guarded = count;
      // What the port leaves to others is taken past it, as they would.
      for (;;) {
        const va = libc.mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0);
        if (va === -1) break;
        many[count++] = va;
      }
      errno = libc.errno();
      try {
        middle.unregister();
      } catch (refused) {
        tries = refused;
      }
    } finally {
      for (const va of many.subarray(0, count)) libc.munmap(va, PAGE);
      real.files.close(fd);
    }
    error('ENOMEM', 'vm.max_map_count')(failure);
    assert.ok(guarded > limit / 2, `${guarded} of ${limit}`);
    const spare = count - guarded;
    assert.ok(spare > 3500 && spare < 4500, `${spare} were left to others`);
    assert.equal(errno, ERRNO.ENOMEM);
    error('ENOMEM', 'munmap')(tries);
    assert.equal(middle.live, true);
    assert.equal(mode(three + PAGE), 'rw-p');
    memory.unmap(memory.map({ length: PAGE }), PAGE);
    middle.unregister();
    assert.equal(mode(three + PAGE), undefined);
    memory.unmap(three, PAGE);
    memory.unmap((three + 2 * PAGE) as Va, PAGE);
  });
});

test('the process lives on when escaped views and late work are touched after everything is freed', { skip }, () => {
  const program = `
    import { randomFill } from 'node:crypto';
    import { Eal } from ${JSON.stringify(new URL('../index.js', import.meta.url).href)};
    const eal = await Eal.start({ memory: { noHuge: true } });
    const move = async (view) => {
      const stream = new ReadableStream({ type: 'bytes', pull: (c) => c.byobRequest.respond(1) });
      const { value } = await stream.getReader({ mode: 'byob' }).read(view);
      return new Uint8Array(value.buffer);
    };
    const memory = eal.external.allocate(1 << 24);
    const block = eal.malloc(1 << 24);
    eal.heaps.create('mine');
    const given = eal.external.allocate(1 << 24);
    eal.heaps.addMemory('mine', given);
    const own = eal.malloc(4096, { heap: 'mine' });
    const late = eal.malloc(1 << 24);
    const escaped = [await move(memory.bytes()), await move(block.bytes()), await move(own.bytes())];
    let running = 0;
    for (const view of [late.bytes(), eal.external.allocate(1 << 26).bytes()]) {
      running++;
      randomFill(view, () => running--);
    }
    late.free();
    memory.unregister();
    await eal.stop();
    for (const view of escaped) { if (view.some((byte) => byte !== 0)) throw new Error('not zero'); view.fill(1); }
    while (running > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    console.log(escaped.map((view) => view.length).join());
  `;
  const {
    status: code,
    signal,
    stdout,
    stderr,
  } = spawnSync(process.execPath, ['--no-warnings', '--input-type=module', '-e', program], { encoding: 'utf8' });
  assert.deepEqual([code, signal, stdout.trim()], [0, null, `${1 << 24},${1 << 24},4096`], stderr);
});
