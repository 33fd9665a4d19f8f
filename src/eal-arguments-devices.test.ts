/** The doors beyond those of `eal-arguments.test.ts`: what serves devices, works them, moves data, and what mappings and pools take. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { Device } from './bus/model.js';
import type { GroupMapping } from './bus/fan-out.js';
import type { Mapping } from './dma/mapping.js';
import { CopyEngine } from './drivers/copy-engine.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Edu } from './drivers/edu.js';
import { eduDriver } from './drivers/edu-driver.js';
import { verbsDriver } from './drivers/verbs-driver.js';
import { Eal } from './eal.js';
import type { ExternalMemory } from './memory/external.js';
import type { Block } from './memory/heap/heap.js';
import { Pool } from './memory/pool/pool.js';
import { openPlatform } from './platform/open.js';
import type { Platform } from './platform/ports.js';
import type { Registers } from './platform/registers/registers.js';
import { trackingPlatform } from '../test/fakes/platform/platforms.js';
import type { CompletionQueue } from './rdma/completion-queue.js';
import type { RdmaDevice } from './rdma/device.js';
import { connectToPeer, listenForPeers, type PeerSession } from './rdma/exchange.js';
import type { QueuePair } from './rdma/queue-pair.js';
import { ReceiveRing } from './rdma/receive-ring.js';
import { Fabric } from '../test/fakes/rdma/fabric.js';
import { knock, type Door } from '../test/shared/arguments.js';
import { VfioUserClient } from './vfio-user/client.js';
import { copyEngineModel } from './vfio-user/devices/copy-engine.js';
import { eduModel } from './vfio-user/devices/edu.js';
import { spawnDevice } from './vfio-user/device-process.js';
import { serve } from './vfio-user/server.js';

const skip = openPlatform().limitation ?? false;

interface Scene {
  readonly eal: Eal;
  readonly platform: Platform;
  /** A copy engine */
  readonly device: Device;
  /** Without a driver that uses it */
  readonly raw: Device;
  readonly registers: Registers;
  readonly edu: Edu;
  readonly memory: ExternalMemory;
  readonly block: Block;
  readonly pool: Pool;
  readonly mapping: Mapping;
  readonly group: GroupMapping;
  readonly folder: string;
}

const model = eduModel();

/** Of texts only the empty one. */
const other = (value: string): never => (value === 'x' ? 5 : value) as never;

/** Serves with one thing more, and closes. */
const serving = ({ platform, folder }: Scene, more: object): Promise<void> =>
  serve(platform, { socketPath: join(folder, 's.sock'), model, ...more }).close();

/** Opens a copy engine on the device that the raw driver has, with rings of which one thing is different. */
async function opening({ raw, memory, mapping }: Scene, options: object, rings: object = {}): Promise<void> {
  const ring = (at: number) => ({ bytes: memory.bytes(at, 1024), iova: mapping.iova + at });
  const engine = await CopyEngine.open(
    raw.access,
    { descriptors: ring(0), completions: ring(1024), ...rings },
    options,
  );
  await engine.close();
}

const DOORS: readonly Door<Scene>[] = [
  ['serve', [], ({ platform }, v) => serve(platform, v)],
  ['serve platform', [], ({ folder }, v) => serve(v, { socketPath: join(folder, 's.sock'), model })],
  ['serve socketPath', ['string'], (scene, v) => serving(scene, { socketPath: other(v) })],
  ['serve model', [], (scene, v) => serving(scene, { model: v })],
  ['serve maxDmaMaps', [], (scene, v) => serving(scene, { maxDmaMaps: v })],
  ['serve once', ['boolean'], (scene, v) => serving(scene, { once: v })],
  ['serve handshakeTimeoutMs', ['number'], (scene, v) => serving(scene, { handshakeTimeoutMs: v })],
  ['serve dmaTimeoutMs', ['number'], (scene, v) => serving(scene, { dmaTimeoutMs: v })],
  ['serve onEvent', ['function'], (scene, v) => serving(scene, { onEvent: v })],
  ['serve bogus', [], (scene, v) => serving(scene, { bogus: v })],
  ['VfioUserClient.connect path', ['string'], ({ platform }, v) => VfioUserClient.connect(platform, v)],
  [
    'VfioUserClient.connect options',
    ['object'],
    ({ platform }, v) => refused(VfioUserClient.connect(platform, '/nowhere/x', v)),
  ],
  [
    'VfioUserClient.connect timeoutMs',
    ['number'],
    ({ platform }, v) => refused(VfioUserClient.connect(platform, '/nowhere/x', { timeoutMs: v })),
  ],
  ['eduModel', ['object'], (_scene, v) => eduModel(v)],
  ['eduModel dmaMaskBits', [], (_scene, v) => eduModel({ dmaMaskBits: v })],
  ['eduModel dmaDelayMs', ['number'], (_scene, v) => eduModel({ dmaDelayMs: v })],
  ['copyEngineModel', ['object'], (_scene, v) => copyEngineModel(v)],
  ['copyEngineModel maxRing', [], (_scene, v) => copyEngineModel({ maxRing: v })],
  ['copyEngineModel maxTransfer', [], (_scene, v) => copyEngineModel({ maxTransfer: v })],
  ['spawnDevice device', [], (_scene, v) => spawnDevice('edu', { device: { bogus: v } as never })],
  ['spawnDevice dmaMaskBits', [], (_scene, v) => spawnDevice('edu', { device: { dmaMaskBits: v } })],
  ['spawnDevice maxRing', [], (_scene, v) => spawnDevice('copy', { device: { maxRing: v } })],
  ['CopyEngine.open access', [], (_scene, v) => CopyEngine.open(v, {} as never)],
  ['CopyEngine.open rings', [], ({ raw }, v) => CopyEngine.open(raw.access, v)],
  ['CopyEngine.open descriptors', [], (scene, v) => opening(scene, {}, { descriptors: v })],
  ['CopyEngine.open bytes', [], (scene, v) => opening(scene, {}, { descriptors: { bytes: v, iova: 0 } })],
  [
    'CopyEngine.open iova',
    [],
    (scene, v) => opening(scene, {}, { completions: { bytes: scene.memory.bytes(0, 1024), iova: v } }),
  ],
  ['CopyEngine.open options', ['object'], (scene, v) => opening(scene, v)],
  ['CopyEngine.open interrupts', ['boolean'], (scene, v) => opening(scene, { interrupts: v })],
  ['CopyEngine.open coalesce', [], (scene, v) => opening(scene, { coalesce: v })],
  ['CopyEngine.open timeoutMs', ['number'], (scene, v) => opening(scene, { timeoutMs: v })],
  ['copy options', ['object'], (scene, v) => copying(scene, v)],
  ['copy onProgress', ['function'], (scene, v) => copying(scene, { onProgress: v })],
  ['copy signal', [], (scene, v) => copying(scene, { signal: v })],
  ['copy destination', [], ({ device }, v) => device.use(copyEngineDriver).copy(0, v, 64)],
  ['submit source', ['number'], ({ device }, v) => device.use(copyEngineDriver).submit(v, 0, 64)],
  ['submit destination', ['number'], ({ device }, v) => device.use(copyEngineDriver).submit(0, v, 64)],
  ['submit length', [], ({ device }, v) => device.use(copyEngineDriver).submit(0, 64, v)],
  ['CopyEngine.close', [], (scene, v) => closing(scene, v)],
  ['Edu.open access', [], (_scene, v) => Edu.open(v)],
  ['Edu.open options', ['object'], (scene, v) => Edu.open(eduAccess(scene), v).close()],
  ['Edu.open dmaMaskBits', [], (scene, v) => Edu.open(eduAccess(scene), { dmaMaskBits: v }).close()],
  ['Edu.open timeoutMs', ['number'], (scene, v) => Edu.open(eduAccess(scene), { timeoutMs: v }).close()],
  ['edu.liveness', ['number'], ({ edu }, v) => edu.liveness(v)],
  ['edu.factorial', [], ({ edu }, v) => edu.factorial(v)],
  ['edu.copyIn iova', [], ({ edu }, v) => edu.copyIn(v, 0, 4)],
  ['edu.copyIn offset', [], ({ edu }, v) => edu.copyIn(0, v, 4)],
  ['edu.copyOut length', [], ({ edu }, v) => edu.copyOut(0, 0, v)],
  ['edu.raiseInterrupt', ['number'], ({ edu }, v) => edu.raiseInterrupt(v)],
  ['edu.enableInterrupt', ['function'], ({ edu }, v) => edu.enableInterrupt(v).close()],
  ['pool.get into', [], ({ pool }, v) => pool.get(v, 1)],
  ['pool.get count', [], ({ pool }, v) => pool.get(new Int32Array(4), v)],
  ['pool.get at', [], ({ pool }, v) => pool.get(new Int32Array(4), 1, v)],
  ['pool.put from', [], ({ pool }, v) => pool.put(v, 1)],
  ['pool.put count', [], ({ pool }, v) => pool.put(new Int32Array(4), v)],
  ['pool.put at', [], ({ pool }, v) => pool.put(new Int32Array(4), 1, v)],
  ['pool.iovasFor', ['object', 'getter'], ({ pool }, v) => pool.iovasFor(v)],
  ['pool.iovasFor domain', [], ({ pool }, v) => pool.iovasFor({ name: 'x', domain: other(v) })],
  ['pool.free', ['object', 'getter'], (scene, v) => freeing(scene, v)],
  ['pool.free force', ['boolean'], (scene, v) => freeing(scene, { force: v })],
  ['Pool.attach', [], ({ platform }, v) => Pool.attach(v, platform)],
  ['Pool.attach stack', [], ({ pool, platform }, v) => Pool.attach({ ...pool.share(), stack: v }, platform)],
  ['Pool.attach threads', [], ({ pool, platform }, v) => Pool.attach({ ...pool.share(), threads: v }, platform)],
  ['Pool.attach chunks', [], ({ pool, platform }, v) => Pool.attach({ ...pool.share(), chunks: v }, platform)],
  ['Pool.attach shape', [], ({ pool, platform }, v) => Pool.attach({ ...pool.share(), shape: v }, platform)],
  ['Pool.attach platform', [], ({ pool }, v) => Pool.attach(pool.share(), v)],
  ['mapping.iovaOf', [], ({ mapping }, v) => mapping.iovaOf(v)],
  [
    'group.of',
    ['null', 'number', 'bigint', 'string', 'boolean', 'object', 'array', 'symbol', 'function', 'getter'],
    ({ group }, v) => group.of(v),
  ],
  ['device.iovaOf', [], ({ device }, v) => device.iovaOf(v)],
  ['device.iovaOf va', [], ({ device }, v) => device.iovaOf({ va: v, length: 1 })],
  ['realloc options', ['object'], (scene, v) => reallocating(scene, v)],
  ['realloc align', ['number'], (scene, v) => reallocating(scene, { align: v })],
  ['realloc bogus', [], (scene, v) => reallocating(scene, { bogus: v })],
  ['explain length', [], ({ device, mapping }, v) => device.explain(mapping.iova, v)],
  ['explain access', [], ({ device, mapping }, v) => device.explain(mapping.iova, 1, v)],
  ['explainFaultsAsync', ['object', 'getter'], ({ device }, v) => device.explainFaultsAsync(v)],
  ['explainFaultsAsync after', ['number'], ({ device }, v) => device.explainFaultsAsync({ after: v, timeoutMs: 0 })],
  [
    'explainFaultsAsync timeoutMs',
    ['number'],
    ({ device }, v) => device.explainFaultsAsync({ after: -1, timeoutMs: v }),
  ],
  ['explainFaultsAsync signal', [], ({ device }, v) => device.explainFaultsAsync({ timeoutMs: 0, signal: v })],
  ['read8', [], ({ registers }, v) => registers.read8(v)],
  ['read16', [], ({ registers }, v) => registers.read16(v)],
  ['read32', [], ({ registers }, v) => registers.read32(v)],
  ['read64', [], ({ registers }, v) => registers.read64(v)],
  ['write8 offset', [], ({ registers }, v) => registers.write8(v, 0)],
  ['write8 value', ['number'], ({ registers }, v) => registers.write8(0, v)],
  ['write16 value', ['number'], ({ registers }, v) => registers.write16(0, v)],
  ['write32 offset', [], ({ registers }, v) => registers.write32(v, 0)],
  ['write32 value', ['number'], ({ registers }, v) => registers.write32(0, v)],
  ['readBig64', [], ({ registers }, v) => registers.readBig64(v)],
  ['writeBig64 offset', [], ({ registers }, v) => registers.writeBig64(v, 0n)],
  ['writeBig64 value', ['bigint'], ({ registers }, v) => registers.writeBig64(0, v)],
  ['write64 value', ['number'], ({ registers }, v) => registers.write64(0, v)],
  ['flush', [], ({ registers }, v) => registers.flush(v)],
  ['access.registers', [], ({ raw }, v) => raw.access.registers(v)],
  ['access.readRegion region', [], ({ raw }, v) => raw.access.readRegion(v, 0, 4)],
  ['access.readRegion offset', [], ({ raw }, v) => raw.access.readRegion(0, v, 4)],
  ['access.readRegion length', [], ({ raw }, v) => raw.access.readRegion(0, 0, v)],
  ['access.writeRegion region', [], ({ raw }, v) => raw.access.writeRegion(v, 0, new Uint8Array(4))],
  ['access.writeRegion offset', [], ({ raw }, v) => raw.access.writeRegion(0, v, new Uint8Array(4))],
  ['access.writeRegion bytes', [], ({ raw }, v) => raw.access.writeRegion(0, 0, v)],
  ['access.interruptCount', [], ({ raw }, v) => raw.access.interruptCount(v)],
  ['access.enableInterrupts kind', [], ({ raw }, v) => raw.access.enableInterrupts(v, [])],
  ['access.enableInterrupts handlers', ['array'], ({ raw }, v) => raw.access.enableInterrupts('msi', v)],
  ['access.enableInterrupts handler', ['function'], ({ raw }, v) => raw.access.enableInterrupts('msi', [v]).close()],
  ['zones.find', ['string'], ({ eal }, v) => eal.zones.find(v)],
  ['zones.reserve align', ['number'], ({ eal }, v) => eal.zones.reserve('n', 64, { align: v }).free()],
  ['zones.reserve heap', ['string'], ({ eal }, v) => eal.zones.reserve('n', 64, { heap: v }).free()],
  ['zones.reserve bogus', [], ({ eal }, v) => eal.zones.reserve('n', 64, { bogus: v } as never).free()],
  ['pools.find', ['string'], ({ eal }, v) => eal.pools.find(v)],
  [
    'pools.create headroom',
    ['number'],
    ({ eal }, v) => eal.pools.create({ elements: 1, elementSize: 64, headroom: v }).free(),
  ],
  [
    'pools.create checked',
    ['boolean'],
    ({ eal }, v) => eal.pools.create({ elements: 1, elementSize: 64, checked: v }).free(),
  ],
  ['pools.create heap', ['string'], ({ eal }, v) => eal.pools.create({ elements: 1, elementSize: 64, heap: v }).free()],
  [
    'pools.create bogus',
    [],
    ({ eal }, v) => eal.pools.create({ elements: 1, elementSize: 64, bogus: v } as never).free(),
  ],
];

/** What connects to nobody: its ENOENT is no refusal of the arguments. */
async function refused(connecting: Promise<unknown>): Promise<void> {
  await connecting.catch((error: unknown) => {
    if ((error as { code?: unknown }).code !== 'ENOENT') throw error;
  });
}

function eduAccess({ eal }: Scene): Parameters<typeof Edu.open>[0] {
  return (eal.find('vdev:edu1') ?? assert.fail()).access;
}

function copying({ device, memory }: Scene, options: object): Promise<void> {
  const iova = device.iovaOf(memory);
  return device.use(copyEngineDriver).copy(iova, iova + 2048, 64, options);
}

async function closing({ raw, memory, mapping }: Scene, why: never): Promise<void> {
  const ring = (at: number) => ({ bytes: memory.bytes(at, 1024), iova: mapping.iova + at });
  const engine = await CopyEngine.open(raw.access, { descriptors: ring(0), completions: ring(1024) });
  try {
    await engine.close(why);
  } finally {
    await engine.close();
  }
}

function freeing({ eal }: Scene, options: object): void {
  const pool = eal.pools.create({ elements: 1, elementSize: 64 });
  try {
    pool.free(options);
  } finally {
    pool[Symbol.dispose]();
  }
}

function reallocating({ eal }: Scene, options: object): void {
  const block = eal.malloc(64);
  try {
    const moved = eal.realloc(block, 128, options);
    moved.free();
  } finally {
    block[Symbol.dispose]();
  }
}

interface RdmaScene {
  readonly eal: Eal;
  readonly device: Device;
  readonly rdma: RdmaDevice;
  readonly pair: QueuePair;
  readonly datagrams: QueuePair;
  readonly queue: CompletionQueue;
  readonly memory: ExternalMemory;
  readonly session: PeerSession;
}

const LOCAL = (memory: ExternalMemory) => ({ va: memory.va, length: 64 });
const remoteOf = (memory: ExternalMemory) => ({ address: memory.va, rkey: 1 });

/** A queue pair is made with these, and closed. */
const paired = ({ rdma }: RdmaScene, options: object): void => rdma.createQueuePair(options).close();
const queued = ({ rdma }: RdmaScene, options: object): void => rdma.createCompletionQueue(options).close();
const connecting = ({ rdma }: RdmaScene, peer: object, options?: object): void => {
  using pair = rdma.createQueuePair();
  pair.connect({ ...pair.address, ...peer }, options);
};
const PAIR_KEYS: readonly (readonly [key: string, right: readonly string[]])[] = [
  ['type', []],
  ['completions', []],
  ['receiveCompletions', []],
  ['sends', []],
  ['receives', []],
  ['sendSges', []],
  ['receiveSges', []],
  ['inline', ['number']],
  ['port', []],
  ['gidIndex', []],
  ['remote', []],
  ['qkey', []],
  ['miss', ['function']],
  ['bogus', []],
];

const RDMA_DOORS: readonly Door<RdmaScene>[] = [
  ['createCompletionQueue', ['object', 'getter'], (scene, v) => queued(scene, v)],
  ['createCompletionQueue entries', [], (scene, v) => queued(scene, { entries: v })],
  ['createCompletionQueue events', ['boolean'], (scene, v) => queued(scene, { events: v })],
  ['createCompletionQueue vector', [], (scene, v) => queued(scene, { vector: v })],
  ['createCompletionQueue batch', [], (scene, v) => queued(scene, { batch: v })],
  ['createQueuePair', ['object'], (scene, v) => paired(scene, v)],
  ...PAIR_KEYS.map(([key, right]): Door<RdmaScene> => [
    `createQueuePair ${key}`,
    right,
    (scene, v) => paired(scene, { [key]: v }),
  ]),
  ...['number', 'psn', 'gid', 'lid', 'mtu', 'reads', 'qkey'].map((key): Door<RdmaScene> => [
    `pair.connect ${key}`,
    [],
    (scene, v) => connecting(scene, { [key]: v }),
  ]),
  ['pair.connect', [], ({ rdma }, v) => connectingTo(rdma, v)],
  ['pair.connect options', ['object'], (scene, v) => connecting(scene, {}, v)],
  ...['mtu', 'timeout', 'retries', 'rnrRetries', 'serviceLevel', 'trafficClass', 'bogus'].map(
    (key): Door<RdmaScene> => [`pair.connect options ${key}`, [], (scene, v) => connecting(scene, {}, { [key]: v })],
  ),
  ['pair.write', [], ({ pair }, v) => pair.write(v)],
  ['pair.write local', [], ({ pair, memory }, v) => pair.write({ local: v, remote: remoteOf(memory) })],
  [
    'pair.write va',
    [],
    ({ pair, memory }, v) => pair.write({ local: { va: v, length: 64 }, remote: remoteOf(memory) }),
  ],
  [
    'pair.write length',
    [],
    ({ pair, memory }, v) => pair.write({ local: { va: memory.va, length: v }, remote: remoteOf(memory) }),
  ],
  ['pair.write remote', [], ({ pair, memory }, v) => pair.write({ local: LOCAL(memory), remote: v })],
  [
    'pair.write address',
    [],
    ({ pair, memory }, v) => pair.write({ local: LOCAL(memory), remote: { address: v, rkey: 1 } }),
  ],
  [
    'pair.write rkey',
    [],
    ({ pair, memory }, v) => pair.write({ local: LOCAL(memory), remote: { address: 0, rkey: v } }),
  ],
  [
    'pair.write immediate',
    [],
    ({ pair, memory }, v) => pair.write({ local: LOCAL(memory), remote: remoteOf(memory), immediate: v }),
  ],
  ['pair.read', [], ({ pair }, v) => pair.read(v)],
  ['pair.read local', [], ({ pair, memory }, v) => pair.read({ local: v, remote: remoteOf(memory) })],
  ['pair.read remote', [], ({ pair, memory }, v) => pair.read({ local: LOCAL(memory), remote: v })],
  ['pair.send', [], ({ pair }, v) => pair.send(v)],
  ['pair.send local', [], ({ pair }, v) => pair.send({ local: v })],
  ['pair.send immediate', [], ({ pair, memory }, v) => pair.send({ local: LOCAL(memory), immediate: v })],
  ['pair.send to', [], ({ datagrams, memory }, v) => datagrams.send({ local: LOCAL(memory), to: v })],
  [
    'pair.send to address',
    [],
    ({ datagrams, memory }, v) => datagrams.send({ local: LOCAL(memory), to: { address: v, number: 1, qkey: 1 } }),
  ],
  ['pair.compareAndSwap', [], ({ pair }, v) => pair.compareAndSwap(v)],
  [
    'pair.compareAndSwap compare',
    ['bigint', 'number'],
    ({ pair, memory }, v) =>
      pair.compareAndSwap({ local: LOCAL(memory), remote: remoteOf(memory), compare: v, exchange: 0 }),
  ],
  ['pair.fetchAndAdd', [], ({ pair }, v) => pair.fetchAndAdd(v)],
  [
    'pair.fetchAndAdd local',
    [],
    ({ pair, memory }, v) => pair.fetchAndAdd({ local: v, remote: remoteOf(memory), add: 1 }),
  ],
  [
    'pair.fetchAndAdd remote',
    [],
    ({ pair, memory }, v) => pair.fetchAndAdd({ local: LOCAL(memory), remote: v, add: 1 }),
  ],
  [
    'pair.fetchAndAdd add',
    ['bigint', 'number'],
    ({ pair, memory }, v) => pair.fetchAndAdd({ local: LOCAL(memory), remote: remoteOf(memory), add: v }),
  ],
  ['pair.receive', [], ({ pair }, v) => pair.receive(v)],
  ['pair.receive va', [], ({ pair }, v) => pair.receive({ va: v, length: 64 })],
  ['pair.receive length', [], ({ pair, memory }, v) => pair.receive({ va: memory.va, length: v })],
  ['pair.bind window', [], ({ pair, memory }, v) => pair.bind(v, LOCAL(memory), 'read')],
  ['pair.bind part', [], (scene, v) => binding(scene, v, 'read')],
  ['pair.bind remote', [], (scene, v) => binding(scene, LOCAL(scene.memory), v)],
  ['pair.unbind', [], ({ pair }, v) => pair.unbind(v)],
  ['pair.sendRequests', [], ({ pair }, v) => pair.sendRequests(v)],
  ['pair.sendRequests sges', [], ({ pair }, v) => pair.sendRequests(1, v)],
  ['pair.receiveRequests', [], ({ pair }, v) => pair.receiveRequests(v)],
  ['pair.post', [], ({ pair }, v) => pair.post(v)],
  ['pair.post first', [], ({ pair }, v) => pair.post(pair.sendRequests(2), v)],
  ['pair.post count', [], ({ pair }, v) => pair.post(pair.sendRequests(2), 0, v)],
  ['pair.postReceives', [], ({ pair }, v) => pair.postReceives(v)],
  ['pair.postReceives count', [], ({ pair }, v) => pair.postReceives(pair.receiveRequests(2), 0, v)],
  ['queue.onCompletions', ['function'], ({ queue }, v) => queue.onCompletions(v)[Symbol.dispose]()],
  ['ReceiveRing pair', [], ({ memory }, v) => new ReceiveRing(v, { va: memory.va, size: 64, count: 1 })],
  ['ReceiveRing options', [], ({ pair }, v) => new ReceiveRing(pair, v)],
  ['ReceiveRing count', [], ({ pair, memory }, v) => new ReceiveRing(pair, { va: memory.va, size: 64, count: v })],
  ['rdma.connect pair', [], ({ rdma }, v) => rdma.connect(v, { host: '10.0.0.1', port: 1 })],
  ['rdma.connect options', [], ({ rdma, pair }, v) => rdma.connect(pair, v)],
  ['rdma.connect host', ['string'], ({ rdma, pair }, v) => rdma.connect(pair, { host: v, port: 1 })],
  ['rdma.connect port', [], ({ rdma, pair }, v) => rdma.connect(pair, { host: '10.0.0.1', port: v })],
  ['rdma.connect data', [], ({ rdma, pair }, v) => rdma.connect(pair, { host: '10.0.0.1', port: 1, data: v })],
  [
    'rdma.connect timeoutMs',
    [],
    ({ rdma, pair }, v) => rdma.connect(pair, { host: '10.0.0.1', port: 1, timeoutMs: v }),
  ],
  [
    'rdma.connect bogus',
    [],
    ({ rdma, pair }, v) => rdma.connect(pair, { host: '10.0.0.1', port: 1, bogus: v } as never),
  ],
  ['rdma.listen options', [], ({ rdma }, v) => rdma.listen(v, () => undefined).close()],
  ['rdma.listen host', ['string'], ({ rdma }, v) => rdma.listen({ host: v }, () => undefined).close()],
  ['rdma.listen port', [], ({ rdma }, v) => rdma.listen({ host: '10.0.0.1', port: v }, () => undefined).close()],
  ['rdma.listen backlog', [], ({ rdma }, v) => rdma.listen({ host: '10.0.0.1', backlog: v }, () => undefined).close()],
  ['rdma.listen serve', ['function'], ({ rdma }, v) => rdma.listen({ host: '10.0.0.1' }, v).close()],
  ['rdma.createAddress', [], ({ rdma }, v) => rdma.createAddress(v).close()],
  ['rdma.createAddress gid', [], ({ rdma }, v) => rdma.createAddress({ gid: v, lid: 0 }).close()],
  [
    'rdma.createAddress options',
    ['object', 'getter'],
    ({ rdma, pair }, v) => rdma.createAddress(pair.address, v).close(),
  ],
  ['rdma.createWindow', [], ({ rdma }, v) => rdma.createWindow(v).close()],
  ['rdma.expose', [], ({ rdma }, v) => rdma.expose(v, 'read').unregister()],
  ['rdma.expose remote', [], ({ rdma, memory }, v) => rdma.expose(memory, v).unregister()],
  ['rdma.registerDmabuf', [], ({ rdma }, v) => rdma.registerDmabuf(v).unregister()],
  ['rdma.registerDmabuf fd', [], ({ rdma }, v) => rdma.registerDmabuf({ fd: v, length: 4096 }).unregister()],
  ['rdma.registerEverything', [], ({ rdma }, v) => rdma.registerEverything(v).unregister()],
  ['rdma.prefetch', [], ({ rdma }, v) => rdma.prefetch(v)],
  ['rdma.prefetch options', ['object', 'getter'], ({ rdma, memory }, v) => rdma.prefetch(memory, v)],
  ['rdma.explainPeer', [], ({ rdma }, v) => rdma.explainPeer(v, 'read')],
  [
    'rdma.explainPeer access',
    [],
    ({ rdma, memory }, v) => rdma.explainPeer({ address: memory.va, length: 1, rkey: 1 }, v),
  ],
  ['rdma.onEvent', ['function'], ({ rdma }, v) => rdma.onEvent(v)[Symbol.dispose]()],
  ['dmaMap remote', [], ({ device, memory }, v) => device.dmaMap(memory, { remote: v }).unmap()],
  ['dmaMap paging', [], ({ device, memory }, v) => device.dmaMap(memory, { paging: v }).unmap()],
  ['connectToPeer', [], (_scene, v) => connectToPeer(v)],
  [
    'connectToPeer host',
    [],
    (_scene, v) => connectToPeer({ host: other(v), port: 1, hello: { pairs: [], memory: [] } }),
  ],
  [
    'connectToPeer port',
    [],
    (_scene, v) => connectToPeer({ host: '127.0.0.1', port: v, hello: { pairs: [], memory: [] } }),
  ],
  ['connectToPeer hello', [], (_scene, v) => connectToPeer({ host: '127.0.0.1', port: 1, hello: v })],
  [
    'connectToPeer pairs',
    [],
    (_scene, v) => connectToPeer({ host: '127.0.0.1', port: 1, hello: { pairs: [v], memory: [] } }),
  ],
  [
    'connectToPeer memory',
    [],
    (_scene, v) => connectToPeer({ host: '127.0.0.1', port: 1, hello: { pairs: [], memory: [v] } }),
  ],
  [
    'connectToPeer timeoutMs',
    ['number'],
    (_scene, v) => connectToPeer({ host: '127.0.0.1', port: 1, hello: { pairs: [], memory: [] }, timeoutMs: v }),
  ],
  [
    'connectToPeer maxLine',
    [],
    (_scene, v) => connectToPeer({ host: '127.0.0.1', port: 1, hello: { pairs: [], memory: [] }, maxLine: v }),
  ],
  ['listenForPeers', ['object', 'getter'], async (_scene, v) => (await listenForPeers(v, () => undefined)).close()],
  ['listenForPeers host', [], async (_scene, v) => (await listenForPeers({ host: other(v) }, () => undefined)).close()],
  ['listenForPeers port', [], async (_scene, v) => (await listenForPeers({ port: v }, () => undefined)).close()],
  [
    'listenForPeers maxSessions',
    [],
    async (_scene, v) => (await listenForPeers({ maxSessions: v }, () => undefined)).close(),
  ],
  ['listenForPeers serve', ['function'], async (_scene, v) => (await listenForPeers({}, v)).close()],
  ['session.greet', [], ({ session }, v) => session.greet(v)],
  ['session.ask', ['string'], ({ session }, v) => session.ask(v, 1)],
  ['session.answer name', ['string'], ({ session }, v) => session.answer(v, () => 1)],
  ['session.answer', ['function'], ({ session }, v) => session.answer('x', v)],
  ['session.explainFrom', [], ({ session }, v) => session.explainFrom(v)],
  ['session.join', [], ({ session }, v) => session.join(v)],
  ['session.join peer', [], ({ session, pair }, v) => session.join(pair, v)],
];

function connectingTo(rdma: RdmaDevice, peer: never): void {
  using pair = rdma.createQueuePair();
  pair.connect(peer);
}

async function binding({ rdma, pair }: RdmaScene, part: object, remote: string): Promise<void> {
  using window = rdma.createWindow();
  await pair.bind(window, part as never, remote as never);
}

describe('arguments that are none, of devices', { skip }, () => {
  it('are refused at every door with a DmaError, and leave nothing', async () => {
    const platform = trackingPlatform(openPlatform());
    const eal = await Eal.start({ platform, memory: { noHuge: true } });
    const folder = mkdtempSync(join(tmpdir(), 'anydma-doors-'));
    const device = await eal.probe('vdev:copy0');
    const raw = await eal.probe('vdev:copy1/driver=raw').catch(() => eal.probe('bus=vdev,name=copy1/driver=raw'));
    const memory = eal.external.allocate(4096);
    device.dmaMap(memory);
    const scene: Scene = {
      eal,
      platform,
      device,
      raw,
      registers: raw.access.registers(0),
      edu: (await eal.probe('vdev:edu1')).use(eduDriver),
      memory,
      block: eal.malloc(64),
      pool: eal.pools.create({ elements: 4, elementSize: 64 }),
      mapping: raw.dmaMap(memory),
      group: eal.dmaMapAll(memory),
      folder,
    };
    const books = (): unknown => ({
      mappings: [...eal.devices()].map(({ domain }) => [...(domain?.mappings() ?? [])].length),
      blocks: [...eal.heaps].map((heap) => heap.statistics().allocatedBlocks),
      zones: [...eal.zones].length,
      pools: [...eal.pools].map(({ name, available }) => [name, available]),
      files: readdirSync(folder),
      threads: scene.pool.threads,
    });
    const before = books();
    try {
      assert.deepEqual(await knock(scene, DOORS), []);
      assert.deepEqual(books(), before);
    } finally {
      rmSync(folder, { recursive: true });
    }
    scene.group.unmap();
    scene.pool[Symbol.dispose]();
    scene.block[Symbol.dispose]();
    await eal.stop();
    assert.deepEqual(platform.leaks(), []);
  });

  it('are refused by the registers of a device in another process', async () => {
    await using eal = await Eal.start();
    await using served = await spawnDevice('edu');
    const device = await eal
      .probe(`vfio-user:${served.socketPath}/driver=raw`)
      .catch(() => eal.probe(`vfio-user:${served.socketPath}`));
    const scene = { raw: device, registers: device.access.registers(0) };
    const doors = DOORS.filter(([door]) => /^(access|read|write|flush)/.test(door));
    assert.ok(doors.length > 20);
    assert.deepEqual(await knock(scene as Scene, doors), []);
  });

  it('what a server was given is its own', async () => {
    await using eal = await Eal.start();
    const folder = mkdtempSync(join(tmpdir(), 'anydma-doors-'));
    const told: string[] = [];
    const options = {
      socketPath: join(folder, 's.sock'),
      model,
      once: false,
      onEvent: (event: { kind: string }) => void told.push(event.kind),
    };
    const { socketPath } = options;
    const server = serve(eal.platform, options);
    try {
      Object.assign(options, { socketPath: join(folder, 'other'), once: true, onEvent: () => told.push('changed') });
      for (let round = 0; round < 2; round++) await eal.remove(await eal.probe(`vfio-user:${socketPath}`));
    } finally {
      await server.close();
    }
    assert.deepEqual(told.slice(0, 2), ['connected', 'disconnected']);
    assert.ok(!told.includes('changed'));
    assert.deepEqual(readdirSync(folder), []);
    rmSync(folder, { recursive: true });
  });

  it('of RDMA are refused at every door with a DmaError, and leave nothing', async () => {
    const platform = new Fabric().host(openPlatform(), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
    const eal = await Eal.start({ platform, onForgotten: () => undefined });
    const device = await eal.probe('rdma:rxe0');
    const rdma = device.use(verbsDriver);
    const memory = eal.external.allocate(4096);
    device.dmaMap(memory);
    const hello = { pairs: [], memory: [] };
    await using server = await listenForPeers({ host: '127.0.0.1' }, (peer) => peer.greet(hello));
    const session = await connectToPeer({ host: '127.0.0.1', port: server.port, hello });
    const scene: RdmaScene = {
      eal,
      device,
      rdma,
      pair: rdma.createQueuePair({ sends: 8, receives: 8 }),
      datagrams: rdma.createQueuePair({ type: 'ud', sends: 8, receives: 8 }),
      queue: rdma.createCompletionQueue(),
      memory,
      session,
    };
    scene.pair.connect(scene.pair.address);
    const leaks = platform.verbsLeaks().length;
    assert.deepEqual(await knock(scene, RDMA_DOORS), []);
    assert.equal(platform.verbsLeaks().length, leaks);
    session.close();
    await eal.stop();
    assert.deepEqual(platform.verbsLeaks(), []);
  });
});
