/** Errors that a program meets have a next step, one code a cause. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, constants, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, describe, it } from 'node:test';
import { runInThisContext } from 'node:vm';
import {
  copyEngineDriver,
  eduDriver,
  type Device,
  type ErrorCode,
  type FromFdOptions,
  GiB,
  MiB,
  Pool,
  type Va,
} from './index.js';
import { spawnDevice } from './entry/model.js';
import { Eal } from './eal.js';
import { DmaError, isDmaError } from './errors.js';
import { openPlatform } from './platform/open.js';

const skip = openPlatform().limitation ?? false;
const QUIET = { memory: { noHuge: true }, onForgotten: () => undefined };

/** What is done wrong, the code of its error, and what its hint has to say. */
type Mistakes = Record<string, readonly [code: ErrorCode, call: () => unknown, hint?: RegExp]>;

async function mustHaveHints(mistakes: Mistakes): Promise<void> {
  for (const [what, [code, call, says]] of Object.entries(mistakes))
    await assert.rejects(
      async () => call(),
      (error) => {
        if (!isDmaError(error)) throw error;
        assert.equal(error.code, code, `${what}: ${error.message}`);
        assert.ok(error.hint !== undefined, `${what}: ${error.message}`);
        if (says !== undefined) assert.match(error.hint, says, what);
        return true;
      },
      what,
    );
}

/** Does something that succeeds, and the same once more. */
const twice = (call: () => unknown) => async (): Promise<void> => {
  await call();
  await call();
};

/** Names a file and gives no access to its bytes (fcntl.h); Node has no constant of it. */
const O_PATH = 0o10000000;

const text = (value: unknown): never => value as never;

it('common mistakes have a hint that says what to do', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  using memory = eal.external.allocate(8192);
  eal.heaps.create('h');
  using _zone = eal.zones.reserve('z', 64);
  await mustHaveHints({
    'a name of no bus': ['ENODEV', () => eal.probe('bogus')],
    'a device there is not': ['ENODEV', () => eal.probe('vdev:nosuch')],
    'a device that is probed': ['EEXIST', () => eal.probe('vdev:copy0')],
    'a misaligned range': ['EINVAL', () => device.dmaMap({ va: memory.va + 1, length: 4096 })],
    'a range past the end': ['EINVAL', () => device.dmaMap({ va: memory.va, length: 65536 })],
    'memory that is not registered': ['EINVAL', () => device.dmaMap({ va: 4096, length: 4096 })],
    'a misaligned IOVA': ['EINVAL', () => device.dmaMap(memory, { iova: 4097 })],
    'rights of peers on a device without keys': ['ENOTSUP', () => device.dmaMap(memory, { remote: 'read' })],
    'more memory than there is': ['ENOMEM', () => eal.malloc(2 ** 50)],
    'an empty heap': ['ENOMEM', () => eal.malloc(64, { heap: 'h' })],
    'a heap of that name': ['EEXIST', () => eal.heaps.create('h')],
    "the library's heap": ['EPERM', () => eal.heaps.destroy('socket_0')],
    'a zone of that name': ['EEXIST', () => eal.zones.reserve('z', 64), /zones\.find/],
    'a zone there is not': ['ENOENT', () => eal.zones.free('none')],
    'a misaligned view': ['EINVAL', () => eal.external.register(new Uint8Array(5))],
    'a region there is not': ['EINVAL', () => device.access.registers(3)],
  });
});

it('what has ended says how to know that', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const inHeap = eal.external.allocate(4096);
  const memory = eal.external.allocate(4096);
  const mapping = device.dmaMap(memory);
  mapping.unmap();
  memory.unregister();
  const block = eal.malloc(64);
  block.free();
  const zone = eal.zones.reserve('z', 64);
  zone.free();
  const pool = eal.pools.create({ elements: 4, elementSize: 64 });
  pool.free();
  const shared = eal.pools.create({ elements: 4, elementSize: 64 });
  const description = shared.share();
  shared.free();
  eal.heaps.create('h');
  await mustHaveHints({
    'unmap twice': ['EINVAL', () => mapping.unmap(), /mapping\.live/],
    'unmapAsync after unmap': ['EINVAL', () => mapping.unmapAsync(), /mapping\.live/],
    'the IOVA of what is unmapped': ['EINVAL', () => mapping.iova, /mapping\.live/],
    'iovaOf of what is unmapped': ['EINVAL', () => mapping.iovaOf(memory.va), /unmapped/],
    'unmap by address twice': ['EINVAL', () => device.dmaUnmap(memory), /unmapped, or never mapped/],
    'unregister twice': ['EINVAL', () => memory.unregister(), /memory\.live/],
    'unregisterAsync after unregister': ['EINVAL', () => memory.unregisterAsync(), /memory\.live/],
    'unregister by address twice': [
      'ENOENT',
      () => eal.external.unregister({ va: memory.va, length: 4096 }),
      /iterate eal\.external/,
    ],
    'bytes of freed memory': ['EINVAL', () => memory.bytes(), /memory\.live/],
    'pin of freed memory': ['EINVAL', () => memory.pin(), /memory\.live/],
    'lend of freed memory': ['EINVAL', () => memory.lend(() => 0), /memory\.live/],
    'map of freed memory': ['EINVAL', () => device.dmaMap(memory), /register it first/],
    'freed memory into a heap': ['EINVAL', () => eal.heaps.addMemory('h', memory), /unregistered/],
    'free twice': ['EINVAL', () => block.free(), /block\.live/],
    'freeAsync after free': ['EINVAL', () => block.freeAsync(), /block\.live/],
    'bytes of a freed block': ['EINVAL', () => block.bytes(), /block\.live/],
    'realloc of a freed block': ['EINVAL', () => eal.realloc(block, 128), /block\.live/],
    'iovaOf of a freed block': ['EINVAL', () => device.iovaOf(block), /live/],
    'zone.free twice': ['EINVAL', () => zone.free(), /live/],
    'zones.free of a freed zone': ['EINVAL', () => eal.zones.free(zone), /zone\.live/],
    'pool.free twice': ['EINVAL', () => pool.free(), /pool\.live/],
    'bytes of a freed pool': ['EINVAL', () => pool.bytes(0), /pool\.live/],
    'share of a freed pool': ['EINVAL', () => pool.share(), /pool\.live/],
    'attach to a freed pool': ['EINVAL', () => Pool.attach(description, eal.platform), /share\(\)/],
    'heaps.destroy twice': [
      'ENOENT',
      () => (eal.heaps.create('i'), eal.heaps.destroy('i'), eal.heaps.destroy('i')),
      /heaps here/,
    ],
    'removeMemory of what is not in it': [
      'ENOENT',
      () => eal.heaps.removeMemory('h', { va: inHeap.va, length: 4096 }),
      /no memory/,
    ],
    'addMemory twice': ['EEXIST', twice(() => eal.heaps.addMemory('h', inHeap)), /removeMemory/],
    'unregister of what is in a heap': ['EBUSY', () => inHeap.unregister(), /heap h.*removeMemory first/],
    'remove of a device twice': ['EINVAL', removeTwice(eal), /removed before/],
    'map on a device that was removed': ['EINVAL', mapRemoved(eal, inHeap), /eal\.probe/],
  });
});

function removeTwice(eal: Eal): () => Promise<void> {
  return async () => {
    const device = await eal.probe('vdev:copy7');
    await eal.remove(device);
    await eal.remove(device);
  };
}

function mapRemoved(eal: Eal, memory: { readonly va: Va; readonly length: number }): () => Promise<void> {
  return async () => {
    const device = await eal.probe('vdev:copy7');
    await eal.remove(device);
    device.dmaMap(memory);
  };
}

it('sizes that are not possible say which are', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  using memory = eal.external.allocate(4 * MiB);
  using block = eal.malloc(100);
  await mustHaveHints({
    'bytes past the end': [
      'EINVAL',
      () => memory.bytes(0, 8 * MiB),
      /4194304 bytes \(4 MiB\), of which 4194304 follow/,
    ],
    'bytes from past the end': ['EINVAL', () => memory.bytes(8 * MiB), /4 MiB/],
    'an address that is an object': [
      'EINVAL',
      () => eal.external.find({ va: text(memory), length: 4096 }),
      /\.va and \.length/,
    ],
    'bytes from a bigint': ['EINVAL', () => memory.bytes(text(1n)), /Number\(1n\)/],
    'bytes of a bigint': ['EINVAL', () => memory.bytes(0, text(1n)), /Number\(1n\)/],
    'bytes from before the start': ['EINVAL', () => memory.bytes(-1), /4 MiB/],
    'bytes from what is no number': ['EINVAL', () => memory.bytes(NaN), /4 MiB/],
    'bytes of a block past its end': ['EINVAL', () => block.bytes(64, 64), /100 bytes.*36 follow offset 64/],
    'malloc of nothing': ['EINVAL', () => eal.malloc(0), /1 or more/],
    'malloc of less than nothing': ['EINVAL', () => eal.malloc(-1), /1 or more/],
    'malloc of a text': ['EINVAL', () => eal.malloc(text('64M')), /parseSize/],
    'malloc of a bigint': ['EINVAL', () => eal.malloc(text(64n)), /Number\(64n\)/],
    'malloc of undefined': ['EINVAL', () => eal.malloc(text(undefined)), /left out/],
    'malloc with an alignment of 100': ['EINVAL', () => eal.malloc(64, { align: 100 }), /64 and 128/],
    'malloc with an alignment of -1': ['EINVAL', () => eal.malloc(64, { align: -1 }), /64, 128/],
    'malloc with a boundary that is too small': ['EINVAL', () => eal.malloc(300, { boundary: 256 }), /as large as/],
    'malloc on a node there is not': ['EINVAL', () => eal.malloc(64, { node: 99 }), /nodes are/],
    'malloc from a heap there is not': ['ENOENT', () => eal.malloc(64, { heap: 'none' }), /heaps here: socket_0/],
    'calloc of too much': ['EINVAL', () => eal.calloc(2 ** 40, 2 ** 40), /below 2\^53/],
    'allocate of nothing': ['EINVAL', () => eal.external.allocate(0), /1 or more/],
    'allocate with a table of another length': [
      'EINVAL',
      () => eal.external.allocate(8192, { iovas: [0] }),
      /each page/,
    ],
    'allocate with pages of 3 bytes': [
      'EINVAL',
      () => eal.external.allocate(8192, { hugePageSize: 3 }),
      /anydma hugepages/,
    ],
    'a page size with a heap that has others': [
      'ENOMEM',
      () => eal.malloc(64, { pageSizes: [2 * MiB] }),
      /\(4 KiB: .*\)/,
    ],
    'a zone without a name': ['EINVAL', () => eal.zones.reserve(text(5), 64), /first argument is a name/],
    'a zone without a length': ['EINVAL', () => eal.zones.reserve('a', text(undefined)), /left out/],
    'a zone with a long name': ['ENAMETOOLONG', () => eal.zones.reserve('x'.repeat(40), 64), /31/],
    'a pool of no elements': ['EINVAL', () => eal.pools.create({ elements: 0, elementSize: 64 }), /1 to 2\^28/],
    'a pool of elements of no size': ['EINVAL', () => eal.pools.create({ elements: 1, elementSize: 0 }), /elementSize/],
    'pages of 3 bytes': ['EINVAL', () => Eal.start({ memory: { pageSizes: [3] } }), /powers? of|hugepages/],
    'both of two options': ['EINVAL', () => Eal.start({ memory: { size: 1, numaMem: [1] } }), /leave one/],
  });
  assert.throws(() => memory.bytes(8 * MiB), { reason: 'offset 8388608 is past the end' });
  assert.throws(() => memory.bytes(text(1n)), { reason: 'the offset is 1n, not a number of bytes from 0 to 4194304' });
});

it('pools say what is wrong with elements, names and memory', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const pool = eal.pools.create({ name: 'p', elements: 2, elementSize: 64, checked: true });
  const numbers = new Int32Array(4);
  using memory = eal.external.allocate(8192);
  assert.equal(pool.get(numbers, 2), true);
  assert.equal(pool.get(numbers, 1, 2), false, 'none left: no error, and nothing is changed');
  assert.equal(pool.available, 0);
  await mustHaveHints({
    'a name that is in use': [
      'EEXIST',
      () => eal.pools.create({ name: 'p', elements: 1, elementSize: 64 }),
      /2 elements of 64/,
    ],
    'a burst that does not fit': ['EINVAL', () => pool.get(numbers, 5), /places 0 to 3/],
    'an array of another type': ['EINVAL', () => pool.get(text(new Float64Array(1)), 1), /Int32Array/],
    'put twice': ['EINVAL', twice(() => pool.put(numbers, 1)), /put twice/],
    'put of what there is not': ['EINVAL', () => pool.put(Int32Array.of(9), 1), /0 to 1/],
    'bytes of an element there is not': ['EINVAL', () => pool.bytes(2), /0 to 1/],
    'freed while elements are out': ['EBUSY', () => pool.free(), /put them back/],
    'memory twice': [
      'EEXIST',
      () => eal.pools.create({ elements: 1, elementSize: 64, external: [memory, memory] }),
      /twice/,
    ],
    'memory and a heap': [
      'EINVAL',
      () => eal.pools.create({ elements: 1, elementSize: 64, external: [memory], heap: 'socket_0' }),
      /leave out heap/,
    ],
  });
  pool.put(numbers, 1, 1);
});

describe('descriptors', { skip }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'anydma-hints-'));
  after(() => rmSync(folder, { recursive: true }));

  it('that are none, or of the wrong kind, say what would do', async () => {
    await using eal = await Eal.start(QUIET);
    const path = join(folder, 'file');
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    writeFileSync(path, '');
    const server = createServer().listen(0);
    const fds = {
      folder: openSync(folder, 'r'),
      readable: openSync('/etc/passwd', 'r'),
      writable: openSync(path, 'w'),
      device: openSync('/dev/null', 'r+'),
      closed: openSync('/dev/null', 'r'),
      empty: openSync(join(folder, 'empty'), 'w+'),
      proc: openSync('/proc/self/status', 'r'),
      sysfs: openSync('/sys/kernel/mm/transparent_hugepage/enabled', 'r'),
      path: openSync('/etc/passwd', O_PATH),
      pipe: openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK),
    };
    ftruncateSync(fds.writable, 8192);
    closeSync(fds.closed);
    const from = (fd: unknown, options?: FromFdOptions) => () => eal.external.fromFd(text(fd), options);
    try {
      await mustHaveHints({
        'a closed one': ['EBADF', from(100_000), /closed/],
        'what open returned when it failed': ['EBADF', from(-1), /failed/],
        'a path': ['EINVAL', from(path), /fs\.openSync/],
        'a folder': ['EINVAL', from(fds.folder), /open a file in it; external\.allocate/],
        'a device': ['EINVAL', from(fds.device), /external\.allocate/],
        'read-only, to be written': ['EACCES', from(fds.readable, { writable: true }), /writable: false/],
        'write-only': ['EACCES', from(fds.writable), /'r\+'/],
        'an offset inside a page': ['EINVAL', from(fds.readable, { offset: 5 }), /^use 0;/],
        'an offset before the file': ['EINVAL', from(fds.readable, { offset: -4096 }), /use 0 or a multiple of 4096/],
        'an offset that is no number': ['EINVAL', from(fds.readable, { offset: NaN }), /use 0 or a multiple/],
        'no length': ['EINVAL', from(fds.readable, { length: 0 }), /use a multiple of 4096/],
        'a length below nothing': ['EINVAL', from(fds.readable, { length: -4096 }), /use a multiple of 4096/],
        'a length without an end': ['EINVAL', from(fds.readable, { length: Infinity }), /use a multiple of 4096/],
        'an empty file': ['EINVAL', from(fds.empty), /ftruncateSync/],
        'a file of proc': ['EINVAL', from(fds.proc, { length: 4096 }), /proc.*have no memory/],
        'a file of sysfs': ['ENODEV', from(fds.sysfs), /external\.allocate/],
        'opened by O_PATH': ['EBADF', from(fds.path), /'r\+'/],
        'a pipe': ['EINVAL', from(fds.pipe), /data of the pipe/],
        'the same without blocking': ['EBADF', () => eal.external.fromFdAsync(100_000), /closed/],
      });
    } finally {
      server.close();
      for (const [name, fd] of Object.entries(fds)) if (name !== 'closed') closeSync(fd);
    }
  });

  it('sockets of servers that are not there say what is', async () => {
    await using eal = await Eal.start(QUIET);
    writeFileSync(join(folder, 'other.sock'), '');
    await mustHaveHints({
      'no socket': [
        'ENOENT',
        () => eal.probe(`vfio-user:${folder}/x.sock`),
        /anydma serve.*start it first.*other\.sock/,
      ],
      'no folder': ['ENOENT', () => eal.probe(`vfio-user:${folder}/none/x.sock`), /no folder/],
      'a file in the place of a folder': [
        'ENOTDIR',
        () => eal.probe(`vfio-user:${folder}/other.sock/x`),
        /not a folder/,
      ],
      'a file': ['ECONNREFUSED', () => eal.probe(`vfio-user:${folder}/other.sock`), /not a socket/],
      'a long path': ['ENAMETOOLONG', () => eal.probe(`vfio-user:${folder}/${'x'.repeat(120)}`), /shorter/],
    });
  });
});

it('devices and drivers say which would do', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const edu = await eal.probe('vdev:edu0,dma-mask=20');
  using memory = eal.external.allocate(MiB);
  using more = eal.external.allocate(MiB);
  using mapped = mapSome(edu, memory);
  await mustHaveHints({
    'use of another driver': ['EINVAL', () => device.use(eduDriver), /device\.driver/],
    'use of a name': ['EINVAL', () => device.use(text('copy')), /copyEngineDriver/],
    'a mapping of another device': ['EINVAL', () => device.dmaUnmap(mapped), /mapping\.unmap/],
    'no IOVAs left': ['ENOSPC', () => edu.dmaMap(more), /windows are.*unmap what/],
    'no target': ['EINVAL', () => device.dmaMap(text('x')), /external\.register/],
    'pieces of no size': ['EINVAL', () => device.dmaMapAsync(memory, { chunkBytes: 0 }), /1 or more/],
    'spawnDevice of a device there is not': ['EINVAL', () => spawnDevice(text('bogus')), /edu and copy/],
    'spawnDevice of a number': ['EINVAL', () => spawnDevice(text(5)), /edu and copy/],
    'a bus twice': [
      'EEXIST',
      () => eal.registerBus(text({ name: 'vdev', parse: () => '', open: () => '' })),
      /names must be unique/,
    ],
    'a driver twice': ['EEXIST', () => eal.registerDriver(copyEngineDriver), /names must be unique/],
  });

  function mapSome(on: Device, { va }: { readonly va: Va }): ReturnType<Device['dmaMap']> {
    return on.dmaMap({ va, length: MiB / 2 });
  }
});

it('device names, registers and kinds of devices say which values there are', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const registers = device.access.registers(0);
  const model = (): never => text(undefined);
  eal.vdev.define('nic', model);
  const socket = `vfio-user:${tmpdir()}/anydma-none.sock`;
  await mustHaveHints({
    'an address mask of 99 bits': ['EINVAL', () => eal.probe('vdev:edu0,dma-mask=99'), /from 12 to 52.*28/],
    'an address mask of nothing': ['EINVAL', () => eal.probe('vdev:edu0,dma-mask='), /from 12 to 52/],
    'an address mask for another kind': ['EINVAL', () => eal.probe('vdev:copy1,dma-mask=20'), /kinds edu, nvme/],
    'the same for a kind of the program': ['EINVAL', () => eal.probe('vdev:nic0,dma-mask=20'), /kinds edu, nvme/],
    'an IOMMU there is not': ['EINVAL', () => eal.probe('vdev:copy1,iommu=maybe'), /emulated or identity/],
    'another way to map regions': ['EINVAL', () => eal.probe(`${socket},mmap=maybe`), /auto, trust, sealed or never/],
    'another way to share memory': ['EINVAL', () => eal.probe(`${socket},share=maybe`), /always or never/],
    'a time that is none': ['EINVAL', () => eal.probe(`${socket},timeout=soon`), /milliseconds/],
    'a user that is none': ['EINVAL', () => eal.probe(`${socket},user=root`), /id -u/],
    'a key of nothing': ['EINVAL', () => eal.probe('vdev:edu0,dma-mask'), /key=value/],
    'a key twice': ['EINVAL', () => eal.probe('vdev:edu0,dma-mask=20,dma-mask=21'), /leave one out/],
    'a key of a name without a bus': ['EINVAL', () => eal.probe('undefined,mmap=maybe'), /write bus:name/],
    'a kind without a name': ['EINVAL', () => eal.vdev.define('', model), /my-nic/],
    'a kind that is a number': ['EINVAL', () => eal.vdev.define('nic0', model), /my-nic/],
    'a kind twice': ['EEXIST', () => eal.vdev.define('nic', model), /kinds: edu, .*nic$/],
    'a kind that is built in': ['EEXIST', () => eal.vdev.define('copy', model), /kinds: edu/],
    'a kind that nothing makes': ['EINVAL', () => eal.vdev.define('x', text(undefined)), /left out/],
    'a model that is none': ['EINVAL', () => eal.probe('vdev:nic0'), /DeviceModel/],
    'a driver that is none': ['EINVAL', () => device.use(text({})), /copyEngineDriver/],
    'a driver with a number for a name': ['EINVAL', () => device.use(text({ name: 5 })), /copyEngineDriver/],
    'a store of NaN': ['EINVAL', () => registers.write32(0, NaN), /low bits/],
    'a store of a half': ['EINVAL', () => registers.write16(0, 0.5), /low bits/],
    'a store of a text': ['EINVAL', () => registers.write8(0, text('1')), /Number\(\)/],
    'a store of a bigint': ['EINVAL', () => registers.write32(0, text(5n)), /Number\(5n\)/],
    'a wide store of NaN': ['EINVAL', () => registers.write64(0, NaN), /write64 takes an integer/],
    'a wide store of 2^53': ['EINVAL', () => registers.write64(0, 2 ** 53), /writeBig64/],
    'a wide store of a bigint': ['EINVAL', () => registers.write64(0, text(5n)), /writeBig64/],
    'a wide store of a text': ['EINVAL', () => registers.write64(0, text('5')), /Number\(\)/],
    'a big store of a number': ['EINVAL', () => registers.writeBig64(0, text(5)), /write64 takes/],
    'a big store that is too big': ['EINVAL', () => registers.writeBig64(0, 2n ** 64n), /asUintN/],
    'a range of registers that is none': ['EINVAL', () => device.access.readRegion(0, 4090, 8), /inside/],
    'progress for nobody': ['EINVAL', () => eal.mallocAsync(64, { onProgress: text(5) }), /doneBytes/],
    'a signal that is none': ['EINVAL', () => eal.mallocAsync(64, { signal: text({}) }), /AbortSignal\.timeout/],
    'options that are none': ['EINVAL', () => eal.pools.create(text(null)), /\{ name: value \}/],
  });
  await assert.rejects(eal.probe('undefined,mmap=maybe'), { device: undefined, reason: /"undefined" names no bus/ });
  assert.throws(() => device.use(text({})), { reason: 'the driver has no name' });
});

it('errors are named by what was called', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const pool = eal.pools.create({ elements: 4, elementSize: 64 });
  const boom = { onProgress: (): never => assert.fail('boom') };
  const wrong = { elements: 1, elementSize: 0 };
  const large = { elements: 2 ** 20, elementSize: 2 ** 29 };
  const calls: Record<string, readonly (() => unknown)[]> = {
    'zones.reserve': [
      () => eal.zones.reserve('z', 2 ** 50),
      () => eal.zones.reserve('z', 64, { align: 3 }),
      () => eal.zones.reserve('z', 64, { node: 99 }),
      () => eal.zones.reserve('z', 0, { align: 3 }),
    ],
    'zones.reserveAsync': [
      () => eal.zones.reserveAsync('z', 8 * MiB, boom),
      () => eal.zones.reserveAsync('z', 2 ** 50),
      () => eal.zones.reserveAsync('z', 64, { align: 3 }),
    ],
    'pools.create': [
      () => eal.pools.create(wrong),
      () => eal.pools.create(large),
      () => eal.pools.create({ elements: 0, elementSize: 64 }),
      () => eal.pools.create({ elements: 4, elementSize: 64, cache: 4 }),
      () => eal.pools.create({ elements: 4, elementSize: 64, node: 99 }),
    ],
    'pools.createAsync': [
      () => eal.pools.createAsync(wrong),
      () => eal.pools.createAsync(large),
      () => eal.pools.createAsync({ elements: 1024, elementSize: 8192, ...boom }),
      () => eal.pools.createAsync({ elements: 4, elementSize: 64, name: pool.name }),
      () => eal.pools.createAsync({ elements: 4, elementSize: 64, external: [], heap: 'socket_0' }),
    ],
    mallocAsync: [() => eal.mallocAsync(64, { node: 99 }), () => eal.mallocAsync(8 * MiB, boom)],
    'vdev.define': [
      () =>
        eal.vdev.define(
          'copy',
          text(() => undefined),
        ),
    ],
  };
  for (const [operation, wrongCalls] of Object.entries(calls))
    for (const call of wrongCalls) await assert.rejects(async () => call(), { operation }, String(call));
  // 1.5 times a cache, rounded down, is at most what the pool has.
  assert.throws(() => eal.pools.create({ elements: 4, elementSize: 64, cache: 4 }), { hint: /1 to 3/ });
  eal.pools.create({ elements: 4, elementSize: 64, cache: 3 }).free();
  await eal.remove(device);
  pool.free();
  assert.throws(() => pool.iovasFor(device), { operation: 'pool.iovasFor', hint: /pool\.live/ });
});

it('more memory than there can be is told with figures, and costs nothing', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  for (const size of [2 ** 43, 2 ** 45, 2 ** 50, 2 ** 52]) {
    const before = process.resourceUsage().maxRSS;
    assert.throws(() => eal.malloc(size), { code: 'ENOMEM', hint: /are available \(.*available/ });
    await assert.rejects(eal.mallocAsync(size), { code: 'ENOMEM', hint: /are available \(.*available/ });
    assert.ok(process.resourceUsage().maxRSS - before < 256 * 1024, 'KiB: no list of its pages was made');
  }
});

it('a driver whose device has gone says what opens it again', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const copy = await eal.probe('vdev:copy0');
  const engine = copy.use(copyEngineDriver);
  const edu = await eal.probe('vdev:edu0');
  const eduEngine = edu.use(eduDriver);
  await eal.remove(copy);
  await eal.remove(edu);
  await mustHaveHints({
    copy: ['ECANCELED', () => engine.copy(0x1000, 0x2000, 64), /eal\.probe/],
    edu: ['ECANCELED', () => eduEngine.factorial(3), /eal\.probe/],
  });
});

it('what was given up says so, by the name of what was called', { skip }, async () => {
  const boom = (): never => {
    throw new Error('boom');
  };
  const started = Eal.start({ memory: { noHuge: true, size: GiB }, signal: AbortSignal.timeout(5) });
  await assert.rejects(started, { code: 'ECANCELED', operation: 'Eal.start' });
  await assert.rejects(Eal.start({ memory: { noHuge: true, size: 8 * MiB }, onProgress: boom }), {
    code: 'ECANCELED',
    operation: 'Eal.start',
    reason: 'cancelled, because onProgress threw: boom',
  });
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  using memory = eal.external.allocate(MiB);
  const threw = /cancelled, because onProgress threw: boom/;
  for (const call of [
    () => eal.mallocAsync(8 * MiB, { onProgress: boom }),
    () => eal.zones.reserveAsync('z', 8 * MiB, { onProgress: boom }),
    () => eal.pools.createAsync({ elements: 1024, elementSize: 8192, onProgress: boom }),
    () => eal.external.allocateAsync(8 * MiB, { onProgress: boom }),
    () => device.dmaMapAsync(memory, { onProgress: boom }),
    () => eal.dmaMapAllAsync(memory, [device], { onProgress: boom }),
  ])
    await assert.rejects(
      call,
      (error) => isDmaError(error, 'ECANCELED') && threw.test(error.reason) && error.hint !== undefined,
    );
  const aborted = { signal: AbortSignal.timeout(2) };
  await assert.rejects(eal.zones.reserveAsync('z', GiB, aborted), {
    code: 'ECANCELED',
    operation: 'zones.reserveAsync',
  });
  assert.equal(eal.memory.trim(), 0, 'nothing was kept');
});

/** Objects that are asked as signals are, and answer badly. */
function hostileSignals(): Record<string, unknown> {
  const throwing = new AbortController().signal;
  Object.defineProperty(throwing, 'aborted', { get: () => assert.fail('asked') });
  return {
    'what looks like one': { aborted: false, addEventListener: () => undefined, removeEventListener: () => undefined },
    'its prototype': AbortSignal.prototype,
    'an heir that is none': Object.create(AbortSignal.prototype),
    'one that throws when it is asked': throwing,
    'a controller': new AbortController(),
    'an event target': new EventTarget(),
  };
}

/** Values that throw when somebody looks at them. */
function untouchables(): unknown[] {
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  const trap = (): never => assert.fail('looked at');
  return [
    Object.create(null),
    revoked.proxy,
    new Proxy({}, { get: trap, getPrototypeOf: trap, has: trap }),
    Symbol('s'),
  ];
}

it('signals and callbacks that answer badly give no bare errors, and nothing stays', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const engine = device.use(copyEngineDriver);
  using memory = eal.external.allocate(MiB);
  const path = join(mkdtempSync(join(tmpdir(), 'anydma-hints-')), 'file');
  const fd = openSync(path, 'w+');
  const works = {
    mallocAsync: async (how: object) => (await eal.mallocAsync(8 * MiB, how)).free(),
    'zones.reserveAsync': async (how: object) => (await eal.zones.reserveAsync('z', 8 * MiB, how)).free(),
    'pools.createAsync': async (how: object) =>
      (await eal.pools.createAsync({ elements: 1024, elementSize: 8192, ...how })).free(),
    'external.allocateAsync': async (how: object) => (await eal.external.allocateAsync(8 * MiB, how)).unregister(),
    'external.fromFdAsync': async (how: object) => {
      // All of it holes, which get storage with progress.
      ftruncateSync(fd, 0);
      ftruncateSync(fd, 8 * MiB);
      (await eal.external.fromFdAsync(fd, how)).unregister();
    },
    dmaMapAsync: async (how: object) => (await device.dmaMapAsync(memory, how)).unmap(),
    dmaMapAllAsync: async (how: object) => (await eal.dmaMapAllAsync(memory, [device], how)).unmap(),
    'Eal.start': async (how: object) => (await Eal.start({ memory: { noHuge: true, size: 8 * MiB }, ...how })).stop(),
  };
  const asks = {
    explainFaults: async (how: object) => device.explainFaultsAsync({ timeoutMs: 0, ...how }),
    copy: async (how: object) => engine.copy(0x1000, 0x2000, 64, how),
  };
  try {
    for (const [operation, work] of Object.entries({ ...works, ...asks }))
      for (const [what, signal] of Object.entries(hostileSignals()))
        await assert.rejects(work({ signal }), { code: 'EINVAL', operation, hint: /AbortSignal\.timeout/ }, what);
    for (const [operation, work] of Object.entries(works))
      for (const value of untouchables()) {
        const cause = { code: 'ECANCELED', operation, hint: /./ };
        await assert.rejects(work({ signal: AbortSignal.abort(value) }), cause);
        const onProgress = (): never => {
          throw value;
        };
        await assert.rejects(work({ onProgress }), cause);
      }
    const dma = new DmaError({ code: 'EIO', operation: 'mine', reason: 'enough' });
    await assert.rejects(works.mallocAsync({ signal: AbortSignal.abort(dma) }), { hint: /the signal was aborted/ });
  } finally {
    closeSync(fd);
    rmSync(dirname(path), { recursive: true });
  }
  eal.memory.trim();
  assert.deepEqual([[...eal.external].length, eal.zones.size, [...eal.pools].length], [1, 0, 0]);
});

it('a device says what it failed to reach', { skip }, async () => {
  await using eal = await Eal.start(QUIET);
  const device = await eal.probe('vdev:copy0');
  const engine = device.use(copyEngineDriver);
  const made: unknown = runInThisContext('new WebAssembly.Memory({ initial: 4, maximum: 64 })');
  const wasm = made as { readonly buffer: ArrayBuffer; grow(pages: number): number };
  using grown = eal.external.register(new Uint8Array(wasm.buffer));
  using target = eal.external.allocate(4096);
  using from = device.dmaMap(grown);
  using to = device.dmaMap(target);
  wasm.grow(1);
  await mustHaveHints({
    'memory that has moved': ['EIO', () => engine.copy(from.iova, to.iova, 64), /WebAssembly\.Memory that grew/],
    'memory that is not mapped': ['EFAULT', () => engine.copy(0x1000, to.iova, 64), /never mapped|before/],
  });
});

describe('what limits of the process keep it from having, a hint names by the limit', { skip }, () => {
  for (const [limit, call, says] of [
    ['ulimit -f 0', 'eal.external.allocate(4 * MiB)', /^EFBIG RLIMIT_FSIZE allows files of 0 bytes.*ulimit -f/],
    ['ulimit -v 8000000', 'eal.external.allocate(16 * 1024 * MiB)', /^ENOMEM .*RLIMIT_AS is 7.6 GiB.*ulimit -v/],
    ['ulimit -f 0', 'eal.malloc(4 * MiB)', /^ENOMEM .*RLIMIT_FSIZE/],
  ] as const)
    it(`${limit}: ${call}`, () => {
      const code = `
        import { Eal, MiB } from ${JSON.stringify(import.meta.resolve('./index.js'))};
        const eal = await Eal.start({ memory: { noHuge: true } });
        try {
          ${call};
        } catch ({ code, hint }) {
          process.stderr.write(code + ' ' + hint);
        }
        await eal.stop();`;
      const run = `${limit}; exec ${JSON.stringify(process.execPath)} --input-type=module -e "$0"`;
      const { stderr } = spawnSync('bash', ['-c', run, code], { encoding: 'utf8' });
      assert.match(stderr, says);
    });
});
