/** Every way to have external memory. Names that begin with `EM-` or `DM-` are items of the conformance list. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { isDmaError, type ErrorCode } from '../errors.js';
import { openPlatform } from '../platform/open.js';
import { hugePagesForTest } from '../../test/shared/real-hugepages.js';
import { portablePlatform } from '../platform/portable.js';
import type { Platform } from '../platform/ports.js';
import { failingPlatform, trackingPlatform } from '../../test/fakes/platform/platforms.js';
import { alignUp, KiB, MiB, type Va } from '../units.js';
import { AreaIndex } from './area-index.js';
import { External, type ExternalMemory } from './external.js';
import { collected } from '../../test/shared/garbage.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const PAGE = real.memory.pageSize;

function error(code: ErrorCode, ...texts: (string | RegExp)[]): (thrown: unknown) => true {
  return (thrown) => {
    if (!isDmaError(thrown)) throw thrown;
    assert.equal(thrown.code, code, thrown.message);
    for (const text of texts)
      assert.ok(typeof text === 'string' ? thrown.message.includes(text) : text.test(thrown.message), thrown.message);
    return true;
  };
}

/** Fresh books over a platform that knows what is left. */
function setup(base: Platform = real) {
  const platform = trackingPlatform(base);
  const index = new AreaIndex();
  const changes: [string, ExternalMemory][] = [];
  const external = new External(platform, index, (change, memory) => changes.push([change, memory]));
  const mustBeEmpty = (): void => {
    assert.deepEqual([platform.leaks(), index.size, [...external]], [[], 0, []]);
  };
  return { platform, index, external, changes, mustBeEmpty };
}

/** A part of a new Buffer that begins and ends on pages. */
function pagesOf(count: number): Buffer {
  const buffer = Buffer.alloc((count + 1) * PAGE);
  const from = alignUp(real.memory.addressOf(buffer), PAGE) - real.memory.addressOf(buffer);
  return buffer.subarray(from, from + count * PAGE);
}

const directory = mkdtempSync(join(tmpdir(), 'anydma-'));
after(() => rmSync(directory, { recursive: true }));

/** A new file of that many bytes, open read-write; closed at the end. */
function file(bytes: number, flags = 'r+'): { fd: number; path: string } {
  const path = join(directory, `file-${Math.random()}`);
  writeFileSync(path, Buffer.alloc(bytes, 'file'));
  const fd = openSync(path, flags);
  after(() => closeSync(fd));
  return { fd, path };
}

describe('DPDK external_mem_autotest', { skip }, () => {
  const length = 4 * MiB;
  const pages = length / PAGE;
  const table = Float64Array.from({ length: pages }, (_, i) => 2 ** 32 + i * PAGE);
  const va = skip === false ? real.memory.map({ length }) : (0 as Va);
  after(() => skip === false && real.memory.unmap(va, length));

  test('EM-C01 unregister what was never registered: ENOENT', () => {
    assert.throws(() => setup().external.unregister({ va, length }), error('ENOENT', 'no external memory is exactly'));
  });
  test('EM-C04 register a length of 0: EINVAL', () => {
    assert.throws(() => setup().external.fromAddress(va, 0), error('EINVAL'));
  });
  test('EM-C05 unregister a length of 0: EINVAL', () => {
    assert.throws(() => setup().external.unregister({ va, length: 0 }), error('EINVAL'));
  });
  test('EM-C07 register address 0: EINVAL', () => {
    assert.throws(() => setup().external.fromAddress(0, length), error('EINVAL', 'address 0'));
  });
  test('EM-C08 unregister address 0: EINVAL', () => {
    assert.throws(() => setup().external.unregister({ va: 0, length }), error('EINVAL', 'address 0'));
  });
  for (const [id, count] of [
    ['EM-C10', 0],
    ['EM-C11', pages - 1],
    ['EM-C12', pages + 1],
  ] as const) {
    test(`${id} register with a table of ${count} entries for ${pages} pages: EINVAL, and nothing is left`, () => {
      const { external, mustBeEmpty } = setup();
      const iovas = Float64Array.from({ length: count }, (_, i) => 2 ** 32 + i * PAGE);
      assert.throws(
        () => external.fromAddress(va, length, { iovas }),
        error('EINVAL', `${count} entries for ${pages}`),
      );
      mustBeEmpty();
    });
  }
  for (const iovas of [table, undefined]) {
    const which = iovas === undefined ? 'without a table' : 'with a table';
    test(`EM-D01 EM-D02 EM-D03 EM-D04 register ${which}: every page is found, and has its IOVA`, () => {
      const { external, index, mustBeEmpty } = setup();
      const memory = external.fromAddress(va, length, { iovas });
      for (let page = 0; page < pages; page++) {
        const area = index.at(va + page * PAGE);
        assert.equal(area, memory.area);
        assert.equal(area?.owner, 'external');
        assert.equal(area.iovas?.[page], iovas?.[page]);
      }
      external.unregister({ va, length });
      mustBeEmpty();
    });
    test(`EM-D05 EM-D06 unregister, and register again, ${which}`, () => {
      const { external, mustBeEmpty } = setup();
      for (let round = 0; round < 3; round++) {
        external.fromAddress(va, length, { iovas });
        external.unregister({ va, length });
        mustBeEmpty();
      }
    });
  }
});

describe('registration', { skip }, () => {
  test('DM-11 what overlaps is EEXIST: the same, head, tail, inside and around, for every source', () => {
    const { external, index } = setup();
    using memory = external.allocate(8 * PAGE, { label: 'the first' });
    const { fd } = file(PAGE);
    for (const [from, pages] of [
      [0, 8],
      [0, 1],
      [7, 1],
      [2, 3],
    ])
      assert.throws(
        () => external.fromAddress(memory.va + from * PAGE, pages * PAGE),
        error('EEXIST', 'overlaps the external area the first', 'unregister that area first'),
      );
    const buffer = pagesOf(4);
    using inner = external.register(buffer.subarray(PAGE, 3 * PAGE));
    for (const [from, to] of [
      [0, 4],
      [0, 2],
      [2, 4],
      [1, 3],
      [1, 2],
    ])
      assert.throws(() => external.register(buffer.subarray(from * PAGE, to * PAGE)), error('EEXIST'));
    using left = external.register(buffer.subarray(0, PAGE));
    using right = external.register(buffer.subarray(3 * PAGE));
    assert.equal(index.size, 4);
    assert.deepEqual([...external], [memory, inner, left, right]);
    using fromFile = external.fromFd(fd);
    assert.equal(fromFile.source, 'file');
  });

  test('what is registered is found and listed in that order, whichever of it goes and comes again', () => {
    const { external } = setup();
    const buffer = pagesOf(4);
    const register = (page: number): ExternalMemory =>
      external.register(buffer.subarray(page * PAGE, (page + 1) * PAGE));
    const live = [0, 1, 2].map(register);
    const check = (): void => {
      assert.deepEqual([...external], live);
      for (const memory of live) assert.equal(external.find({ va: memory.va, length: PAGE }), memory);
    };
    check();
    for (const [gone, page] of [
      [1, 3],
      [2, 3],
      [2, 1],
      [0, 0],
    ]) {
      const [memory] = live.splice(gone, 1);
      memory.unregister();
      assert.equal(external.has(memory), false);
      check();
      live.push(register(page));
      check();
    }
    // As Eal.stop does: what is listed may go meanwhile.
    for (const memory of external) memory.unregister();
    assert.deepEqual([...external], []);
  });

  test('DM-12 unregistering by a wrong length, a part, or more is ENOENT, with what is there', () => {
    const { external } = setup();
    using memory = external.allocate(4 * PAGE, { label: 'four pages' });
    const { va } = memory;
    for (const [from, pages] of [
      [0, 3],
      [0, 5],
      [1, 3],
      [1, 1],
    ])
      assert.throws(
        () => external.unregister({ va: va + from * PAGE, length: pages * PAGE }),
        error('ENOENT', /hint: the external area four pages is \[0x/),
      );
    assert.equal(external.find({ va, length: 4 * PAGE }), memory);
    assert.equal(memory.live, true);
  });

  test('DM-13 unregistering while mapped is EBUSY and names the devices', () => {
    const { external } = setup();
    const memory = external.allocate(PAGE, { label: 'held' });
    memory.area.hold('vdev:a');
    memory.area.hold('vdev:b');
    assert.throws(() => memory.unregister(), error('EBUSY', 'held is mapped by vdev:a, vdev:b', 'unmap it'));
    assert.throws(() => memory[Symbol.dispose](), error('EBUSY'));
    assert.throws(() => external.unregister({ va: memory.va, length: PAGE }), error('EBUSY'));
    memory.bytes()[0] = 1;
    memory.area.release('vdev:a');
    assert.throws(() => memory.unregister(), error('EBUSY', 'by vdev:b'));
    memory.area.release('vdev:b');
    memory.unregister();
  });

  test('DM-14 every registration and removal is told, after it happened', () => {
    const { external, changes } = setup();
    const memory = external.allocate(PAGE);
    memory.unregister();
    assert.throws(() => external.allocate(0));
    assert.deepEqual(changes, [
      ['registered', memory],
      ['unregistered', memory],
    ]);
  });

  test('what each source tells about itself', () => {
    const { external, mustBeEmpty } = setup();
    const { fd } = file(3 * PAGE);
    const raw = real.memory.map({ length: PAGE });
    const made = [
      external.allocate(PAGE + 1),
      external.allocate(1, { source: 'anonymous', node: 0, label: 'mine' }),
      external.fromFd(fd, { offset: PAGE }),
      external.register(pagesOf(2)),
      external.fromAddress(raw, PAGE),
    ];
    assert.deepEqual(
      made.map(({ source, length, fd: own, area }) => [
        source,
        length / PAGE,
        own !== undefined,
        area.node,
        area.writable,
      ]),
      [
        ['memfd', 2, true, -1, true],
        ['anonymous', 1, false, 0, true],
        ['file', 2, true, -1, true],
        ['buffer', 2, false, -1, true],
        ['address', 1, false, -1, true],
      ],
    );
    assert.equal(made[1].area.label, 'mine');
    assert.match(made[0].area.label, /^memfd memory at 0x[0-9a-f]+$/);
    assert.notEqual(made[2].fd, fd);
    assert.deepEqual(made[2].area.backing, { fd: made[2].fd, offset: PAGE });
    assert.match(String(made[0].origin?.stack), /external\.test/);
    for (const each of made) {
      assert.equal(external.find({ va: each.va, length: each.length }), each);
      assert.deepEqual(external.bytesAt(each.va, 3), each.bytes(0, 3));
      each.unregister();
    }
    assert.equal(external.bytesAt(raw, 1), undefined);
    mustBeEmpty();
    real.memory.unmap(raw, PAGE);
  });

  test('page sizes: multiples are checked, tables have one IOVA a page', () => {
    const { external, mustBeEmpty } = setup();
    const raw = real.memory.map({ length: 4 * MiB });
    const va = alignUp(raw, 2 * MiB) as Va;
    for (const pageSize of [0, 3, -1, 12288])
      assert.throws(() => external.fromAddress(va, 2 * MiB, { pageSize }), error('EINVAL', 'not a power of two'));
    assert.throws(
      () => external.fromAddress(va + PAGE, PAGE, { pageSize: 2 * MiB }),
      error('EINVAL', 'not a multiple'),
    );
    assert.throws(() => external.fromAddress(va + 1, PAGE), error('EINVAL', 'not a multiple'));
    assert.throws(() => external.fromAddress(va, PAGE + 1), error('EINVAL', 'not a multiple'));
    {
      using memory = external.fromAddress(va, 2 * MiB, { pageSize: 2 * MiB, iovas: [8 * MiB] });
      assert.equal(memory.area.pageSize, 2 * MiB);
      assert.throws(
        () => external.fromAddress(va, 2 * MiB, { pageSize: 2 * MiB, iovas: [MiB] }),
        error('EINVAL', 'entry 0'),
      );
    }
    mustBeEmpty();
    real.memory.unmap(raw, 4 * MiB);
  });

  test('10,000 registrations, and all of them found', () => {
    const { external, index } = setup();
    const raw = real.memory.map({ length: 10_000 * 2 * PAGE });
    const view = new Uint8Array(real.memory.view(raw, 10_000 * 2 * PAGE));
    for (let i = 0; i < 10_000; i++) external.register(view.subarray(i * 2 * PAGE, (i * 2 + 1) * PAGE));
    assert.equal(index.size, 10_000);
    assert.throws(() => external.register(view), error('EEXIST'));
    for (let i = 0; i < 10_000; i++) external.unregister({ va: raw + i * 2 * PAGE, length: PAGE });
    assert.equal(index.size, 0);
    real.memory.detach(view.buffer);
    real.memory.unmap(raw, 10_000 * 2 * PAGE);
  });
});

describe('allocate', { skip }, () => {
  test('impossible lengths and page sizes are EINVAL before anything is done', () => {
    const { external, mustBeEmpty } = setup();
    for (const length of [0, -1, 1.5, NaN, 2 ** 53, 2 ** 53 - 1])
      assert.throws(() => external.allocate(length), error('EINVAL', 'external.allocate'));
    for (const hugePageSize of [0, 3, -PAGE])
      assert.throws(() => external.allocate(PAGE, { hugePageSize }), error('EINVAL'));
    assert.throws(() => external.allocate(PAGE, { iovas: [0, 0] }), error('EINVAL', '2 entries for 1 pages'));
    mustBeEmpty();
  });

  test('more than there is: ENOMEM, and nothing is left', () => {
    const { external, mustBeEmpty } = setup();
    assert.throws(() => external.allocate(2 ** 50, { source: 'anonymous' }), error('ENOMEM'));
    mustBeEmpty();
  });

  test('no hugepages: ENOMEM says how many are needed and how many are free', () => {
    const { external, mustBeEmpty } = setup();
    const free = real.limits.freeHugePages(2 * MiB);
    if (free === undefined) return;
    for (const source of ['memfd', 'anonymous'] as const)
      assert.throws(
        () => external.allocate((free + 5000) * 2 * MiB, { hugePageSize: 2 * MiB, source }),
        error('ENOMEM', `${free + 5000} hugepages of 2 MiB are needed, `, 'are free', 'anydma hugepages'),
      );
    mustBeEmpty();
  });

  test('hugepages of a size that the kernel has not', () => {
    const { external, mustBeEmpty } = setup();
    assert.throws(() => external.allocate(64 * MiB, { hugePageSize: 64 * MiB }), error('ENOTSUP', '64 MiB'));
    mustBeEmpty();
  });

  test('real hugepages', (context) => {
    const { platform, external, mustBeEmpty } = setup();
    const pages = hugePagesForTest(platform, 3);
    if (typeof pages === 'string') return context.skip(pages);
    try {
      for (const source of ['memfd', 'anonymous'] as const) {
        const memory = external.allocate(3 * MiB, { hugePageSize: 2 * MiB, source });
        assert.deepEqual([memory.length, memory.area.pageSize, memory.va % (2 * MiB)], [4 * MiB, 2 * MiB, 0]);
        memory.bytes().fill(7);
        assert.equal(memory.bytes()[4 * MiB - 1], 7);
        memory.unregister();
      }
    } finally {
      pages.giveBack();
    }
    mustBeEmpty();
    return undefined;
  });

  test('new memory is zero, and two pieces are apart', () => {
    const { external } = setup();
    using one = external.allocate(64 * KiB);
    using two = external.allocate(64 * KiB, { source: 'anonymous' });
    assert.ok(one.bytes().every((byte) => byte === 0));
    one.bytes().fill(1);
    two.bytes().fill(2);
    assert.equal(one.bytes()[64 * KiB - 1], 1);
  });
});

describe('fromFd', { skip }, () => {
  test('the file is the memory', () => {
    const { external } = setup();
    const { fd, path } = file(2 * PAGE + 5);
    {
      using memory = external.fromFd(fd);
      assert.equal(memory.length, 3 * PAGE);
      assert.equal(memory.bytes(0, 4).toString(), Buffer.from('file').join(','));
      memory.bytes()[2 * PAGE] = 0x21;
    }
    assert.equal(readFileSync(path)[2 * PAGE], 0x21);
    using part = external.fromFd(fd, { offset: PAGE, length: PAGE });
    assert.equal(part.length, PAGE);
    using twice = external.fromFd(fd, { offset: PAGE, length: PAGE });
    part.bytes()[9] = 99;
    assert.equal(twice.bytes()[9], 99);
  });

  test('what does not fit is EINVAL, and says how long the file is', () => {
    const { external, mustBeEmpty } = setup();
    const { fd } = file(2 * PAGE);
    for (const options of [
      { offset: 1 },
      { offset: -PAGE },
      { offset: NaN },
      { offset: 2 * PAGE },
      { offset: 4 * PAGE },
      { length: 0 },
      { length: 3 * PAGE },
      { length: NaN },
      { offset: PAGE, length: 2 * PAGE },
      { offset: 2 ** 52, length: 2 ** 52 },
      { length: PAGE + 1 },
      { length: 10 },
    ])
      assert.throws(() => external.fromFd(fd, options), error('EINVAL'), JSON.stringify(options));
    assert.throws(() => external.fromFd(fd, { length: 3 * PAGE }), error('EINVAL', `the file has ${2 * PAGE} bytes`));
    const empty = file(0);
    assert.throws(() => external.fromFd(empty.fd), error('EINVAL', 'the file is empty'));
    mustBeEmpty();
  });

  test('descriptors that are no memory', () => {
    const { external, mustBeEmpty } = setup();
    const [left, right] = real.sockets.pair();
    const event = real.events.create();
    const folder = openSync(directory, 'r');
    const device = openSync('/dev/zero', 'r+');
    for (const fd of [left, folder, device, event])
      assert.throws(() => external.fromFd(fd), error('EINVAL', 'not a file or memfd'));
    for (const fd of [left, right, event]) real.files.close(fd);
    closeSync(folder);
    closeSync(device);
    for (const fd of [-1, 1.5, NaN, 9999])
      assert.throws(
        () => external.fromFd(fd),
        (thrown) => isDmaError(thrown),
      );
    assert.throws(() => external.fromFd(9999), error('EBADF'));
    mustBeEmpty();
  });

  test('read-only files: mapped for reading, EACCES when asked to write', () => {
    const { external, mustBeEmpty } = setup();
    const { fd } = file(PAGE, 'r');
    const memory = external.fromFd(fd);
    assert.equal(memory.area.writable, false);
    assert.equal(memory.bytes()[0], 'f'.charCodeAt(0));
    memory.bytes()[0] = 0; // neither kills the process nor changes the file
    const still = new Uint8Array(1);
    real.files.readAt(fd, 0, still);
    assert.equal(still[0], 'f'.charCodeAt(0));
    memory.unregister();
    assert.throws(() => external.fromFd(fd, { writable: true }), error('EACCES', 'reading only', 'writable: false'));
    const both = file(PAGE);
    using choice = external.fromFd(both.fd, { writable: false });
    assert.equal(choice.area.writable, false);
    choice.unregister();
    mustBeEmpty();
  });

  test('the caller keeps its descriptor', () => {
    const { external } = setup();
    const { fd } = file(PAGE);
    external.fromFd(fd).unregister();
    ftruncateSync(fd, 2 * PAGE);
    external.fromFd(fd).unregister();
  });
});

describe('register', { skip }, () => {
  test('the hint of a misaligned view works: what it says can be registered', () => {
    const { external } = setup();
    const view = Buffer.alloc(3 * PAGE);
    for (const [from, to] of [
      [8, 3 * PAGE],
      [1, 2 * PAGE + 100],
      [0, 3 * PAGE - 1],
    ]) {
      const part = view.subarray(from, to);
      if (real.memory.addressOf(part) % PAGE === 0 && part.length % PAGE === 0) continue;
      let hint = '';
      try {
        external.register(part).unregister();
      } catch (thrown) {
        assert.ok(isDmaError(thrown, 'EINVAL'), String(thrown));
        hint = thrown.hint ?? '';
      }
      const match = /bytes (\d+) up to (\d+) of it are on pages: view\.subarray\((\d+), (\d+)\)/.exec(hint);
      if (match === null) assert.fail(hint);
      assert.deepEqual([match[1], match[2]], [match[3], match[4]]);
      using memory = external.register(part.subarray(Number(match[3]), Number(match[4])));
      assert.ok(memory.length >= PAGE);
    }
    const little = Buffer.alloc(2 * PAGE).subarray(1, 100);
    assert.throws(() => external.register(little), error('EINVAL', 'it contains no whole page'));
  });

  test('typed arrays, DataViews, ArrayBuffers and SharedArrayBuffers', () => {
    const { external, mustBeEmpty } = setup();
    const part = pagesOf(4);
    const { buffer, byteOffset } = part;
    for (const view of [
      new Float64Array(buffer, byteOffset, PAGE / 8),
      new DataView(buffer, byteOffset + PAGE, PAGE),
      new Uint32Array(buffer, byteOffset + 2 * PAGE, PAGE / 4),
    ]) {
      const memory = external.register(view);
      memory.bytes()[1] = 77;
      assert.equal(new Uint8Array(view.buffer, view.byteOffset)[1], 77);
      memory.unregister();
    }
    // Large ones are on page boundaries, or nearly so.
    for (const whole of [new ArrayBuffer(4 * MiB), new SharedArrayBuffer(4 * MiB)]) {
      const bytes = new Uint8Array(whole);
      const from = alignUp(real.memory.addressOf(bytes), PAGE) - real.memory.addressOf(bytes);
      using memory = external.register(bytes.subarray(from, from + MiB));
      memory.bytes()[MiB - 1] = 5;
      assert.deepEqual([bytes[from + MiB - 1], memory.bytes().buffer], [5, whole]);
      if (from === 0 && memory.length === whole.byteLength) assert.equal(external.register(whole).length, 4 * MiB);
    }
    mustBeEmpty();
  });

  test('empty, detached and resizable ones are refused', () => {
    const { external, mustBeEmpty } = setup();
    assert.throws(() => external.register(new Uint8Array(0)), error('EINVAL', 'empty or detached'));
    const sent = new ArrayBuffer(PAGE);
    structuredClone(sent, { transfer: [sent] });
    assert.throws(() => external.register(sent), error('EINVAL', 'empty or detached'));
    const resizable: ArrayBuffer = Reflect.construct(ArrayBuffer, [4 * PAGE, { maxByteLength: 8 * PAGE }]);
    assert.throws(() => external.register(resizable), error('EINVAL', 'resizable'));
    assert.throws(() => external.register(new Uint8Array(resizable, 0, PAGE)), error('EINVAL', 'resizable'));
    mustBeEmpty();
  });

  test('a registered Buffer is kept alive, and let go afterwards', () => {
    const url = (name: string): string => JSON.stringify(new URL(name, import.meta.url).href);
    const program = `
      import { External } from ${url('./external.js')};
      import { AreaIndex } from ${url('./area-index.js')};
      import { openPlatform } from ${url('../platform/open.js')};
      const platform = openPlatform();
      const external = new External(platform, new AreaIndex());
      const turn = () => new Promise((resolve) => setImmediate(resolve));
      let ref;
      const make = () => {
        const buffer = new ArrayBuffer(1 << 20);
        ref = new WeakRef(buffer);
        const bytes = new Uint8Array(buffer);
        const at = (4096 - (platform.memory.addressOf(bytes) % 4096)) % 4096;
        bytes.subarray(at, at + 8192).fill(0xab);
        external.register(bytes.subarray(at, at + 8192));
      };
      make();
      for (let i = 0; i < 5; i++) { await turn(); globalThis.gc(); new Uint8Array(1 << 20).fill(1); }
      const kept = ref.deref() !== undefined && [...external][0].bytes().every((byte) => byte === 0xab);
      [...external][0].unregister();
      for (let i = 0; i < 5; i++) { await turn(); globalThis.gc(); }
      console.log(JSON.stringify([kept, ref.deref() === undefined]));
    `;
    const run = spawnSync(process.execPath, ['--expose-gc', '--input-type=module', '-e', program], {
      encoding: 'utf8',
    });
    assert.deepEqual([run.stdout.trim(), run.stderr], ['[true,true]', '']);
  });
});

describe('fromAddress', { skip }, () => {
  test('only what is mapped, and writable where that is wanted', () => {
    const { external, mustBeEmpty } = setup();
    const va = real.memory.map({ length: 4 * PAGE });
    real.memory.unmap((va + 2 * PAGE) as Va, PAGE);
    assert.throws(() => external.fromAddress(va, 4 * PAGE), error('EFAULT', 'not all of it is mapped'));
    assert.throws(() => external.fromAddress(va + 2 * PAGE, PAGE), error('EFAULT'));
    external.fromAddress(va, 2 * PAGE).unregister();
    const readOnly = readOnlyPage();
    assert.throws(() => external.fromAddress(readOnly, PAGE), error('EFAULT', 'not writable', 'writable: false'));
    using memory = external.fromAddress(readOnly, PAGE, { writable: false });
    assert.deepEqual([memory.area.writable, memory.bytes().length], [false, PAGE]);
    memory.unregister();
    for (const bad of [-PAGE, NaN, 0.5, 2 ** 53]) assert.throws(() => external.fromAddress(bad, PAGE), error('EINVAL'));
    mustBeEmpty();
    real.memory.unmap(va, 2 * PAGE);
    real.memory.unmap((va + 3 * PAGE) as Va, PAGE);
  });

  test('the address of memory that JavaScript has a view of already', () => {
    const { external } = setup();
    const part = pagesOf(1);
    using memory = external.fromAddress(real.memory.addressOf(part), PAGE);
    memory.bytes().fill(3);
    assert.equal(part[PAGE - 1], 3);
    memory.unregister();
    assert.deepEqual([part.length, part[0]], [PAGE, 3]);
  });
});

/** A page of this process that can only be read: its constants. */
function readOnlyPage(): Va {
  const line = /^([0-9a-f]+)-[0-9a-f]+ r--p/m.exec(readFileSync('/proc/self/maps', 'latin1'));
  assert.ok(line !== null);
  return parseInt(line[1], 16) as Va;
}

describe('views', { skip }, () => {
  test('they die with the memory: late reads give nothing, late writes do nothing', () => {
    const { external } = setup();
    const { fd } = file(PAGE);
    const raw = real.memory.map({ length: PAGE });
    for (const memory of [
      external.allocate(2 * PAGE),
      external.allocate(PAGE, { source: 'anonymous' }),
      external.fromFd(fd),
      external.fromAddress(raw, PAGE),
    ]) {
      const whole = memory.bytes();
      const part = memory.bytes(16, 16);
      const other = new DataView(whole.buffer, 8);
      const words = new Uint32Array(part.buffer);
      whole[0] = 42;
      assert.deepEqual([words[0] & 0xff, part.length], [42, 16]);
      memory.unregister();
      assert.deepEqual([whole.length, part.length, words.length, whole[0], part[3]], [0, 0, 0, undefined, undefined]);
      whole[0] = 1;
      assert.throws(() => other.getUint8(0), TypeError);
      assert.throws(() => memory.bytes(), error('EINVAL', 'not registered any more'));
      assert.throws(() => memory.pin(), error('EINVAL', 'not registered any more'));
      assert.throws(() => memory.unregister(), error('EINVAL', 'not registered any more'));
      memory[Symbol.dispose]();
      assert.equal(memory.live, false);
    }
    real.memory.unmap(raw, PAGE);
  });

  test('parts are checked', () => {
    const { external } = setup();
    for (const memory of [external.allocate(PAGE), external.register(pagesOf(1))]) {
      for (const [offset, length] of [
        [-1, 1],
        [0, PAGE + 1],
        [PAGE, 1],
        [PAGE + 1, 0],
        [NaN, 1],
        [0, NaN],
        [0.5, 1],
        [2 ** 53, 1],
      ])
        assert.throws(() => memory.bytes(offset, length), error('EINVAL', /past the end|not a number of bytes/));
      assert.deepEqual(
        [memory.bytes(PAGE, 0).length, memory.bytes(PAGE - 1).length, memory.bytes().length],
        [0, 1, PAGE],
      );
      memory.unregister();
    }
  });

  test('the bytes of a Buffer stay its own', () => {
    const { external } = setup();
    const part = pagesOf(1);
    const memory = external.register(part);
    memory.bytes().fill(9);
    memory.unregister();
    assert.deepEqual([part.length, part[17]], [PAGE, 9]);
  });

  test('a pin keeps the memory until it is let go', () => {
    const { external } = setup();
    const memory = external.allocate(PAGE, { label: 'pinned memory' });
    const pin = memory.pin('a copy of 4 KiB');
    const second = memory.pin();
    assert.throws(() => memory.unregister(), error('EBUSY', 'pinned memory is in use: a copy of 4 KiB'));
    pin[Symbol.dispose]();
    pin[Symbol.dispose]();
    assert.throws(() => memory.unregister(), error('EBUSY', 'a running transfer'));
    memory.bytes()[0] = 1;
    second[Symbol.dispose]();
    memory.unregister();
  });

  test('memory longer than an ArrayBuffer can be: parts share a bounded number of views, and all die', () => {
    const small: Platform = { ...real, memory: { ...real.memory, maxView: 4 * PAGE } };
    const { external, platform, mustBeEmpty } = setup(small);
    const memory = external.allocate(11 * PAGE);
    const marks = Array.from({ length: 11 }, (_, page) => memory.bytes(page * PAGE, 1));
    marks.forEach((mark, page) => (mark[0] = page + 1));
    const seen: Uint8Array[] = [...marks];
    for (let round = 0; round < 20; round++)
      for (let offset = 0; offset <= 9 * PAGE; offset += 512) {
        const bytes = memory.bytes(offset, 2 * PAGE);
        assert.equal(bytes[alignUp(offset, PAGE) - offset], alignUp(offset, PAGE) / PAGE + 1);
        seen.push(bytes);
      }
    const long = memory.bytes(5 * PAGE + 1, 3 * PAGE);
    assert.equal(long[PAGE - 1], 7);
    assert.equal(memory.bytes(11 * PAGE, 0).length, 0);
    assert.ok(platform.leaks().filter((line) => line.startsWith('view')).length <= 7);
    memory.unregister();
    assert.ok([...seen, long].every(({ length }) => length === 0));
    mustBeEmpty();
  });

  test('when a view can not be detached, the memory stays', () => {
    const failing = failingPlatform(real, { cleanup: true });
    const { external, platform, mustBeEmpty } = setup(failing);
    const memory = external.allocate(PAGE);
    const bytes = memory.bytes();
    failing.failCall(1, 'ENOTSUP', 'memory.detach');
    assert.throws(() => memory.unregister(), error('ENOTSUP'));
    bytes[0] = 1;
    assert.equal(memory.live, true);
    memory.unregister();
    assert.equal(bytes.length, 0);
    mustBeEmpty();
    assert.deepEqual(platform.leaks(), []);
  });

  for (const call of ['memory.unmap', 'memory.retire'])
    test(`when ${call} fails the memory is still registered, as it was, and it can be tried again`, async () => {
      const failing = failingPlatform(real, { cleanup: true });
      const { external, index, changes, platform, mustBeEmpty } = setup(failing);
      const memory = external.allocate(PAGE);
      if (call === 'memory.retire') memory.bytes().fill(5);
      failing.failCall(1, 'ENOMEM', call);
      assert.throws(() => memory.unregister(), error('ENOMEM', 'made to fail'));
      assert.deepEqual([memory.live, index.size, changes.length], [true, 1, 1]);
      if (call === 'memory.retire') assert.equal(memory.bytes()[PAGE - 1], 5);
      memory.unregister();
      await collected(() => platform.retired().length === 0);
      mustBeEmpty();
    });

  test('when a descriptor can not be closed the memory is gone all the same, and the error is told', () => {
    const failing = failingPlatform(real, { cleanup: true });
    const { external, index } = setup(failing);
    const memory = external.allocate(PAGE);
    const { fd = -1 } = memory;
    failing.failCall(1, 'EIO', 'files.close');
    assert.throws(() => memory.unregister(), error('EIO', 'made to fail'));
    assert.deepEqual([memory.live, index.size], [false, 0]);
    real.files.close(fd);
  });
});

test('where no system calls can be made: anonymous memory and Buffers, and ENOTSUP for the rest', () => {
  const { external, mustBeEmpty } = setup(portablePlatform('this is a test'));
  const memory = external.allocate(5000);
  assert.deepEqual([memory.source, memory.length, memory.fd], ['anonymous', 8192, undefined]);
  const bytes = memory.bytes();
  bytes.fill(1);
  memory.unregister();
  assert.equal(bytes.length, 0);
  assert.throws(() => external.allocate(PAGE, { source: 'memfd' }), error('ENOTSUP', 'this is a test'));
  assert.throws(() => external.fromFd(0), error('ENOTSUP', 'this is a test'));
  const buffer = new ArrayBuffer(8192);
  external.register(buffer).unregister();
  assert.equal(buffer.byteLength, 8192);
  mustBeEmpty();
});
