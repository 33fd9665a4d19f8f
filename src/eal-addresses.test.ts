/** Every address that the library gives out is one that the device's address space translates to that memory, or there is none. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { dmaError } from '../test/shared/errors.js';
import fc from 'fast-check';
import type { GroupMapping } from './bus/fan-out.js';
import type { Bus, Device, Driver, OpenedDevice } from './bus/model.js';
import type { AddressSpace, Segment } from './dma/address-space.js';
import type { Mapping } from './dma/mapping.js';
import { copyEngineDriver } from './drivers/copy-engine-driver.js';
import { Eal, type EalOptions } from './eal.js';
import { DmaError, isDmaError } from './errors.js';
import type { ExternalMemory } from './memory/external.js';
import type { Block } from './memory/heap/heap.js';
import type { Pool } from './memory/pool/pool.js';
import { fakeHugePages } from '../test/fakes/memory/hugepages.js';
import type { Zone } from './memory/owned/zones.js';
import { openPlatform } from './platform/open.js';
import type { Platform } from './platform/ports.js';
import { RangeMap } from './range-map.js';
import { Range } from './ranges.js';
import { GiB, KiB, MiB, type Iova, type Va } from './units.js';
import type { MemoryPart } from './memory/part.js';

const SKIP = { skip: openPlatform().limitation ?? false };
const QUIET = { onForgotten: () => undefined } as const;
const PAGE = 4 * KiB;
const BIG = 64 * KiB;

/** How many address bits devices have, by the first letter of their names; `v` uses VAs as they are. */
const BITS: Readonly<Record<string, number>> = { w: 48, m: 39, n: 28, v: 48 };

/** A bus whose address spaces are maps that the test looks into. */
class OpenBus implements Bus {
  readonly name = 'open';
  readonly mapped = new Map<string, RangeMap<Segment>>();
  /** The nth mapping call from now fails; 0: none. */
  failAt = 0;

  spaceOf({ busName }: Device): AddressSpace {
    const mapped = new RangeMap<Segment>();
    this.mapped.set(busName, mapped);
    const windows = [new Range(0 as Iova, 2 ** (BITS[busName[0]] ?? 48))];
    const iova = busName.startsWith('v') ? 'identity' : 'free';
    return {
      kind: 'open',
      constraints: { granule: PAGE, windows, entryLimit: 64, iova, partialUnmap: true, pins: false },
      map: (segment) => {
        if (this.failAt > 0 && --this.failAt === 0)
          throw new DmaError({ code: 'ENOSPC', operation: 'open map', reason: 'as told' });
        assert.equal(mapped.insert(segment.iova, segment.length, segment), undefined);
        return undefined;
      },
      unmap: ({ iova, length }) => {
        mapped.delete(iova);
        return length;
      },
      close: () => undefined,
    };
  }

  parse(name: string): string | undefined {
    return /^[wmnv]\d$/.test(name) ? name : undefined;
  }

  async open(): Promise<OpenedDevice> {
    return { ids: undefined, access: undefined, onLost: () => undefined, close: () => undefined };
  }

  /** Where a device's access to `[iova, iova + length)` goes; `undefined` when not all of it goes to one place. */
  vaOf(device: Device, iova: number, length: number): number | undefined {
    const spaces = this.mapped.get(device.busName);
    const first = spaces?.at(iova);
    if (first === undefined) return undefined;
    const delta = first.va - first.iova;
    for (let at = iova; at < iova + length;) {
      const here = spaces?.at(at);
      if (here === undefined || here.va - here.iova !== delta) return undefined;
      at = here.iova + here.length;
    }
    return iova + delta;
  }

  /** What the device uses for `[va, va + length)`; `undefined` when that is not one address. */
  iovaOf(device: Device, va: number, length: number): number | undefined {
    const here = [...(this.mapped.get(device.busName)?.values() ?? [])].find(
      (each) => va >= each.va && va < each.va + each.length,
    );
    if (here === undefined) return undefined;
    const iova = here.iova + (va - here.va);
    return this.vaOf(device, iova, length) === va ? iova : undefined;
  }
}

const openDriver: Driver<true> = { name: 'open', buses: ['open'], probe: () => true };

interface World {
  readonly eal: Eal;
  readonly bus: OpenBus;
  readonly blocks: Block[];
  readonly zones: Zone[];
  readonly pools: Pool[];
  /** Of the user's, and what it is mapped as. */
  readonly external: ExternalMemory[];
  readonly mappings: Mapping[];
  readonly groups: GroupMapping[];
  /** What was freed. */
  readonly dead: MemoryPart[];
}

interface Config {
  readonly mode: 'va' | 'same' | 'pa';
  readonly holdBackMs: number;
  /** Where physical addresses begin. */
  readonly frames: number;
}

async function start({ mode, holdBackMs, frames }: Config): Promise<World> {
  const real = openPlatform();
  // Neighbouring pages are neighbours two by two.
  const frameOf = (va: number, n: number): number => frames + (Math.floor((va / BIG) % 4096) + n + (n >> 1)) * BIG;
  const memory: Platform['memory'] = {
    ...real.memory,
    lock: () => undefined,
    frames: (va, _size, count) => Float64Array.from({ length: count }, (_, n) => frameOf(va, n)),
  };
  const platform = fakeHugePages({ ...real, memory: mode === 'pa' ? memory : real.memory }, [
    { pageSize: BIG, pages: [64] },
  ]);
  const bus = new OpenBus();
  const eal = await Eal.start({
    ...QUIET,
    platform,
    holdBackMs,
    buses: [bus],
    drivers: [openDriver],
    memory: {
      pageSizes: [BIG],
      matchAllocations: true,
      iovaMode: mode === 'pa' ? 'pa' : 'va',
      sameIova: mode === 'same',
    },
  });
  const lists = { blocks: [], zones: [], pools: [], external: [], mappings: [], groups: [], dead: [] };
  return { eal, bus, ...lists };
}

/** Compares every address with what the devices reach. */
function check({ eal, bus, blocks, zones, pools, external, mappings, groups, dead }: World): void {
  const devices = eal.devices('bus=open');
  for (const device of devices) {
    const known = [...blocks, ...zones, ...external, ...mappings.filter(({ live }) => live)];
    for (const memory of known) {
      const { va, length } = memory;
      const expected = bus.iovaOf(device, va, length);
      if (expected === undefined) assert.throws(() => device.iovaOf(memory), dmaError('EINVAL'));
      else assert.equal(device.iovaOf(memory), expected);
      for (const at of [va, va + length - 1]) {
        const byte = bus.iovaOf(device, at, 1);
        assert.equal(device.domain?.iovaOf(at), byte ?? -1);
        if (byte !== undefined) assert.equal(device.iovaOf(at), byte);
      }
    }
    for (const { iova, va, length } of [...blocks, ...zones])
      if (iova !== undefined) assert.equal(bus.vaOf(device, iova, length), va, 'the IOVA that all devices have');
    for (const pool of pools) {
      const before = pool.headroom;
      const length = before + pool.elementSize;
      const expected = Array.from(pool.vas, (va) => bus.iovaOf(device, va - before, length));
      if (expected.includes(undefined)) assert.throws(() => pool.iovasFor(device), dmaError('EINVAL'));
      else
        assert.deepEqual(
          [...pool.iovasFor(device)],
          expected.map((iova) => (iova ?? NaN) + before),
        );
      if (pool.iovas !== undefined && pool.owner !== 'external') assert.deepEqual(pool.iovas, pool.iovasFor(device));
      if (pool.owner === 'external') continue;
      let first = 0;
      for (const { iova, va, length: bytes, count } of pool.chunks) {
        if (iova !== undefined) assert.equal(bus.vaOf(device, iova, bytes), va);
        first += count;
      }
      assert.equal(first, pool.elements);
    }
    for (const each of dead) assert.throws(() => device.iovaOf(each), dmaError('EINVAL'));
    for (const mapping of [...mappings, ...groups.flatMap((group) => group.of(device) ?? [])]) {
      if (!mapping.live || mapping.device !== device.name) continue;
      for (const { va, iova, length } of mapping.segments) assert.equal(bus.vaOf(device, iova, length), va);
    }
  }
}

type Op = readonly [kind: string, pick: number, size: number, flag: boolean];

/** Does one thing, which may fail. */
async function step(world: World, [kind, pick, size, flag]: Op): Promise<void> {
  const { eal, bus, blocks, zones, pools, external, mappings, groups, dead } = world;
  const heaps = [...eal.heaps.made];
  const heap = flag && heaps.length > 0 ? { heap: heaps[pick % heaps.length].name } : {};
  const one = <T>(list: T[]): T[] => (list.length === 0 ? [] : list.splice(pick % list.length, 1));
  switch (kind) {
    case 'malloc':
      blocks.push(eal.malloc(size, { ...heap, contiguous: pick % 3 === 0 }));
      break;
    case 'free':
      for (const block of one(blocks)) {
        block.free();
        dead.push(block);
      }
      break;
    case 'zone':
      zones.push(eal.zones.reserve(`zone ${pick}`, size, heap));
      break;
    case 'free zone':
      for (const zone of one(zones)) {
        zone.free();
        dead.push(zone);
      }
      break;
    case 'pool': {
      const shape = { elements: 1 + (pick % 40), elementSize: 1 + (size % 9000), headroom: pick % 3 === 0 ? 128 : 0 };
      const own = external.filter(({ area }) => area.owner === 'external');
      pools.push(eal.pools.create({ ...shape, ...(pick % 4 === 0 && own.length > 0 ? { external: own } : heap) }));
      break;
    }
    case 'free pool':
      for (const pool of one(pools)) pool.free();
      break;
    case 'heap':
      eal.heaps.create(`heap ${pick}`, { sameIova: flag });
      break;
    case 'allocate': {
      const pages = 1 + (size % 12);
      const table = Array.from({ length: pages }, (_, n) => (pick * 64 + n + (n >> 2)) * MiB);
      external.push(eal.external.allocate(pages * PAGE, flag ? { iovas: table } : {}));
      break;
    }
    case 'unregister':
      for (const memory of one(external)) {
        external.push(memory);
        memory.unregister();
        external.pop();
        dead.push(memory);
      }
      break;
    case 'add':
      if (heaps.length > 0 && external.length > 0)
        eal.heaps.addMemory(heaps[pick % heaps.length].name, external[size % external.length]);
      break;
    case 'take out':
      for (const { name, memory } of heaps)
        for (const { range } of [...memory])
          if (range.length % (pick + 2) === 0) eal.heaps.removeMemory(name, { va: range.start, length: range.length });
      break;
    case 'map': {
      const [device] = eal.devices('bus=open').slice(pick % 4);
      const [memory] = external.slice(size % 8);
      if (device === undefined || memory === undefined) break;
      const part = pick % 5 === 0 ? { va: memory.va, length: PAGE } : memory;
      mappings.push(flag ? device.dmaMap(part, { iova: (1 + (size % 1000)) * PAGE }) : device.dmaMap(part));
      break;
    }
    case 'map for all':
      if (external.length > 0) groups.push(eal.dmaMapAll(external[pick % external.length]));
      break;
    case 'unmap':
      if (flag) for (const mapping of one(mappings)) mapping[Symbol.dispose]();
      else for (const group of one(groups)) group.unmap();
      break;
    case 'probe':
      await eal.probe(`open:${'wmnv'[pick % 4]}${size % 2}`);
      break;
    case 'remove':
      for (const device of eal.devices('bus=open').slice(0, pick % 3)) await eal.remove(device);
      break;
    case 'fail':
      bus.failAt = 1 + (pick % 3);
      break;
    case 'trim':
      eal.memory.trim();
  }
}

const op = (kinds: readonly (readonly [string, number])[]): fc.Arbitrary<Op> =>
  fc.tuple(
    fc.oneof(...kinds.map(([kind, weight]) => ({ weight, arbitrary: fc.constant(kind) }))),
    fc.nat(20),
    fc.integer({ min: 1, max: 4 * BIG }),
    fc.boolean(),
  );

const OPS = op([
  ['malloc', 8],
  ['free', 7],
  ['zone', 2],
  ['free zone', 2],
  ['pool', 4],
  ['free pool', 3],
  ['heap', 1],
  ['allocate', 2],
  ['unregister', 1],
  ['add', 2],
  ['take out', 1],
  ['map', 3],
  ['map for all', 1],
  ['unmap', 3],
  ['probe', 3],
  ['remove', 1],
  ['fail', 1],
  ['trim', 1],
]);

describe('addresses', SKIP, () => {
  it('are those that each device translates, whatever comes and goes', { timeout: 300_000 }, async () => {
    const config = fc.record({
      mode: fc.constantFrom('va' as const, 'va' as const, 'same' as const, 'pa' as const),
      holdBackMs: fc.constantFrom(0, 2, 100),
      frames: fc.constantFrom(MiB, 2 ** 30, 2 ** 40),
    });
    await fc.assert(
      fc.asyncProperty(config, fc.array(OPS, { maxLength: 60, size: 'max' }), async (settings, spaces) => {
        const world = await start(settings);
        try {
          for (const each of spaces) {
            try {
              await step(world, each);
            } catch (error) {
              assert.ok(isDmaError(error), error instanceof Error ? error.stack : String(error));
            }
            check(world);
          }
        } finally {
          await world.eal.stop();
        }
      }),
      { numRuns: Number(process.env.ANYDMA_RUNS ?? 60) },
    );
  });

  it('a block, a zone and a pool have none that is not tied to a device, unless it is the same for every device', async () => {
    await using eal = await Eal.start({ ...QUIET, memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    const engine = device.use(copyEngineDriver);
    const target = eal.malloc(PAGE);
    for (let i = 0; i < 20; i++) {
      const block = eal.malloc((4 + i) * MiB, { contiguous: true });
      assert.equal(block.iova, undefined);
      assert.equal(device.iovaOf(block), device.domain?.iovaOf(block.va));
      block.bytes(0, 4).fill(i + 1);
      await engine.copy(device.iovaOf(block), device.iovaOf(target), 4);
      assert.equal(target.bytes()[3], i + 1);
      block.free();
    }
    const zone = eal.zones.reserve('zone', 100);
    assert.equal(zone.iova, undefined);
    assert.equal(device.iovaOf(zone), device.domain?.iovaOf(zone.va));
    using pool = eal.pools.create({ elements: 1280, elementSize: 2048, headroom: 128 });
    assert.equal(pool.iovas, undefined);
    pool.iovasFor(device).forEach((iova, element) => assert.equal(iova, device.domain?.iovaOf(pool.vas[element])));
  });

  it('with no hold-back, the VA is had again at once', async () => {
    await using eal = await Eal.start({ ...QUIET, holdBackMs: 0, memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    for (let i = 0; i < 20; i++) {
      using block = eal.malloc((4 + i) * MiB);
      assert.equal(device.iovaOf(block), Number(block.va));
    }
  });

  it('are asked for with what has one: memory that lives, is mapped, and is in one piece for the device', async () => {
    await using eal = await Eal.start({ ...QUIET, memory: { noHuge: true } });
    const device = await eal.probe('vdev:copy0');
    const block = eal.malloc(64);
    assert.equal(device.iovaOf(block.va), device.iovaOf(block));
    assert.equal(device.iovaOf(block.va + 63), device.iovaOf(block) + 63);
    block.free();
    assert.throws(() => device.iovaOf(block), dmaError('EINVAL', /freed/));
    const memory = eal.external.allocate(3 * PAGE);
    assert.throws(() => device.iovaOf(memory), dmaError('EINVAL', /not mapped for the device.*dmaMap/));
    const page = (n: number): { va: Va; length: number } => ({ va: (memory.va + n * PAGE) as Va, length: PAGE });
    const [first, last] = [device.dmaMap(page(0)), device.dmaMap(page(2))];
    assert.throws(() => device.iovaOf(memory), dmaError('EINVAL', /in one piece/));
    const middle = device.dmaMap(page(1), { iova: GiB });
    assert.throws(() => device.iovaOf(memory), dmaError('EINVAL', /in one piece/));
    assert.equal(device.iovaOf(page(1)), GiB);
    assert.throws(
      () => eal.pools.create({ elements: 1, elementSize: 3 * PAGE, external: [memory] }).iovasFor(device),
      dmaError('EINVAL', /in one piece/),
    );
    for (const each of [first, middle, last]) each.unmap();
    assert.throws(() => device.iovaOf(middle), dmaError('EINVAL', /freed/));
    for (const wrong of [-1, 1.5, NaN, Infinity, 2 ** 53, -(2 ** 31)])
      assert.throws(() => device.iovaOf(wrong), dmaError('EINVAL'));
    for (const wrong of [undefined, null, 'memory', 5n, {}, { va: 4096 }, { va: 5n, length: 1n }])
      assert.throws(() => Reflect.apply(device.iovaOf.bind(device), undefined, [wrong]), dmaError('EINVAL'));
    const mapped = eal.malloc(64);
    assert.throws(() => device.iovaOf({ va: mapped.va, length: 1.5 }), dmaError('EINVAL'));
    for (const length of [0, -1, NaN, 1.5, 2 ** 53])
      assert.throws(() => device.iovaOf({ va: memory.va, length }), dmaError('EINVAL'));
    await eal.remove(device);
    assert.throws(() => device.iovaOf(memory), dmaError('EINVAL'));
  });
});

describe('the same IOVA for every device', SKIP, () => {
  const startSame = async (options: EalOptions = {}) => {
    const bus = new OpenBus();
    const common = { ...QUIET, buses: [bus], drivers: [openDriver] };
    return { bus, eal: await Eal.start({ ...common, ...options }) };
  };

  it('is had by all of them, whatever was there a moment ago, also by those with 39 address bits', async () => {
    const { eal } = await startSame({ memory: { noHuge: true, sameIova: true } });
    const devices = [await eal.probe('open:w0'), await eal.probe('open:m0'), await eal.probe('vdev:copy0')];
    for (let i = 0; i < 20; i++) {
      using block = eal.malloc((4 + i) * MiB);
      assert.equal(block.iova, Number(block.va));
      for (const device of devices) assert.equal(device.iovaOf(block), block.iova);
    }
    using pool = eal.pools.create({ elements: 100, elementSize: 100 });
    devices.push(await eal.probe('open:v0'));
    for (const device of devices) assert.deepEqual(pool.iovas, pool.iovasFor(device));
    assert.equal(eal.zones.reserve('zone', 64).iova, Number(eal.zones.find('zone')?.va));
    await eal.stop();
  });

  it('a late device that can not have it is not probed, and says why', async () => {
    const { eal } = await startSame({ memory: { noHuge: true, sameIova: true } });
    const block = eal.malloc(64);
    await assert.rejects(eal.probe('open:n0'), dmaError('ERANGE', /not inside a window.*sameIova/));
    await assert.rejects(eal.probe('vdev:edu0'), dmaError('ERANGE', /sameIova/));
    assert.deepEqual(eal.devices(), []);
    block.free();
    eal.memory.trim();
    await eal.probe('vdev:edu0');
    await eal.stop();
  });

  it('memory does not grow where a device can not have it, and nothing is left of that', async () => {
    const { eal, bus } = await startSame({ memory: { noHuge: true, sameIova: true } });
    const wide = await eal.probe('open:w0');
    await eal.probe('open:n0');
    assert.throws(() => eal.malloc(64), dmaError('ENOMEM', /not inside a window of the domain on open:n0/));
    assert.equal(bus.mapped.get('w0')?.size, 0);
    assert.equal(wide.domain?.entries, 0);
    assert.equal(eal.memory.heaps[0].total, 0);
    await eal.stop();
  });

  it('something else at that IOVA is in the way, and is named', async () => {
    const { eal } = await startSame();
    const device = await eal.probe('open:w0');
    assert.throws(() => Reflect.apply(eal.heaps.create.bind(eal.heaps), undefined, ['x', null]), dmaError('EINVAL'));
    eal.heaps.create('same', { sameIova: true });
    const [memory, other] = [eal.external.allocate(PAGE), eal.external.allocate(PAGE)];
    const inTheWay = device.dmaMap(other, { iova: Number(memory.va) });
    assert.throws(() => eal.heaps.addMemory('same', memory), dmaError('EEXIST', /is taken by the mapping of open:w0/));
    inTheWay.unmap();
    const elsewhere = device.dmaMap(memory, { iova: GiB });
    assert.throws(() => eal.heaps.addMemory('same', memory), dmaError('EEXIST', /asked for at IOVA/));
    elsewhere.unmap();
    eal.heaps.addMemory('same', memory);
    const block = eal.malloc(64, { heap: 'same' });
    assert.equal(block.iova, Number(block.va));
    assert.equal(device.iovaOf(block), block.iova);
    assert.throws(() => device.dmaMap(memory, { iova: GiB }), dmaError('EINVAL', /the same IOVA for every device/));
    block.free();
    eal.heaps.removeMemory('same', { va: memory.va, length: memory.length });
    assert.equal(device.dmaMap(memory, { iova: GiB }).iova, GiB, 'it is the user’s again');
    await eal.stop();
  });

  it('of memory with a table of its own is that of the table, which a device that uses VAs can not have', async () => {
    const { eal } = await startSame();
    eal.heaps.create('own');
    const memory = eal.external.allocate(2 * PAGE, { iovas: [GiB, GiB + PAGE] });
    eal.heaps.addMemory('own', memory);
    const device = await eal.probe('open:w0');
    const block = eal.malloc(2 * PAGE, { heap: 'own' });
    assert.equal(block.iova, GiB);
    assert.equal(device.iovaOf(block), GiB);
    await assert.rejects(eal.probe('open:v0'), dmaError('EINVAL', /uses VAs as IOVAs, and .* has other IOVAs/));
    await assert.rejects(eal.probe('vdev:copy0,iommu=identity'), dmaError('EINVAL', /uses VAs as IOVAs/));
    await eal.stop();
  });
});
