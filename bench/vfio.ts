/**
 * Mapping through VFIO: the whole stack against a C program that makes the same calls of the kernel, and, with the memory
 * made known first and forgotten after, against DPDK. It takes devices that are bound to vfio-pci, behind an IOMMU, each in
 * a group of its own; `npm run bench:vm` runs it where these are. All work on the very same memory: a memfd of ordinary
 * pages, or of hugepages, that each maps for itself.
 */
import { release } from 'node:os';
import { PciSysfs, isVfio, type PciFunction } from '../src/bus/pci/sysfs.js';
import { usability, type PciWay } from '../src/bus/pci/usable.js';
import { Eal, formatSize, KiB, MiB, type Device, type ExternalMemory } from '../src/index.js';
import { openPlatform } from '../src/platform/open.js';
import { measure, time, type Case, type Effort, type Goal, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';

/** What a round maps, in bytes, and how many times; and how many times the time of C it may take. */
const SIZES = [
  { size: 4 * KiB, count: 500, goal: undefined },
  { size: 2 * MiB, count: 20, goal: 1.2 },
  { size: 64 * MiB, count: 1, goal: 1.05 },
  { size: 256 * MiB, count: 1, goal: 1.05 },
];
/** The same for what is registered as well, against DPDK; without a number, 1.05 times what the kernel's calls alone leave. */
const REGISTERED = [
  { size: 2 * MiB, count: 5, goal: 0.5 },
  { size: 64 * MiB, count: 1, goal: undefined },
  { size: 256 * MiB, count: 1, goal: undefined },
];
/** How many times the smallest is mapped first: JavaScript is compiled as it runs, and in an emulated machine slowly. */
const WARM_UP = 20_000;
/** How many of the smallest are done before the clock of a round starts: the other programs have had the processor. */
const SETTLE = 20;
const LENGTH = 256 * MiB;
const LINUX = `Linux ${release()}`;

/** A way through VFIO, as the library's users name it, and what has to be open for that. */
const WAYS: readonly { readonly name: 'type1' | 'iommufd'; readonly way: PciWay }[] = [
  { name: 'type1', way: 'group' },
  { name: 'iommufd', way: 'iommufd' },
];

/** Who uses which device. */
interface Devices {
  readonly ours: PciFunction;
  readonly c: PciFunction;
  /** For the library without origins, if there are so many. */
  readonly bare: PciFunction | undefined;
  readonly dpdk: PciFunction | undefined;
  readonly ways: ReadonlySet<PciWay>;
}

/** A peer that runs, and what it says of its version. */
interface Versioned {
  readonly peer: Peer;
  readonly version: string;
}

/** Measures mapping, and mapping with registration. */
export async function benchVfio({ quick, progress }: Effort): Promise<Result[]> {
  const platform = openPlatform();
  const devices = platform.limitation === undefined ? findDevices(new PciSysfs(platform.kernel)) : platform.limitation;
  if (typeof devices === 'string') {
    progress(`vfio: left out, ${devices}`);
    return [];
  }
  const c = await startPeer('vfio-map');
  await using _c = typeof c === 'string' ? undefined : c.peer;
  const dpdk = await startDpdk(devices.dpdk);
  await using _dpdk = typeof dpdk === 'string' ? undefined : dpdk.peer;
  const rounds = quick ? { warmUp: 3, measured: 7 } : { warmUp: 12, measured: 31 };
  const results: Result[] = [];
  for (const hugePageSize of [undefined, 2 * MiB]) {
    const pages = hugePageSize === undefined ? '4 KiB pages' : '2 MiB pages';
    let fd: number;
    try {
      fd = platform.memory.memfd({ name: 'bench', length: LENGTH, hugePageSize });
    } catch (error) {
      progress(`vfio: nothing in ${pages}, ${String(error)}`);
      continue;
    }
    const file = `/proc/${process.pid}/fd/${fd}`;
    try {
      if (hugePageSize === undefined && typeof dpdk !== 'string') await dpdk.peer.ask(`memory ${LENGTH} ${file}`);
      for (const { name } of WAYS.filter(({ way }) => devices.ways.has(way))) {
        progress(`vfio: ${name}, ${pages}`);
        const what = `${name}, ${pages}`;
        await using ours = await Ours.open(devices.ours, name, fd, hugePageSize, undefined);
        await using bare =
          devices.bare === undefined ? undefined : await Ours.open(devices.bare, name, fd, hugePageSize, false);
        if (typeof c !== 'string') {
          await c.peer.ask(name === 'type1' ? `type1 ${devices.c.group}` : `iommufd ${devices.c.vfioName}`);
          await c.peer.ask(`memory ${LENGTH} ${file}`);
        }
        const cases = mapCases(ours, bare, c, what);
        if (hugePageSize === undefined) cases.push(...registerCases(ours, bare, dpdk, what));
        results.push(...(await measure(cases, rounds)));
        if (typeof c !== 'string') await c.peer.ask('close');
      }
    } finally {
      platform.files.close(fd);
    }
  }
  return results;
}

/** Which devices to take, or what is missing. */
function findDevices(sysfs: PciSysfs): Devices | string {
  const groups = new Set<number>();
  const found: PciFunction[] = [];
  let ways = new Set<PciWay>(WAYS.map(({ way }) => way));
  for (const each of sysfs.scan().filter(isVfio)) {
    const open = new Set(usability(sysfs, each).ways);
    if (!open.has('group') || each.group === undefined || groups.has(each.group)) continue;
    groups.add(each.group);
    found.push(each);
    ways = new Set([...ways].filter((way) => open.has(way)));
  }
  if (found.length < 2)
    return `${found.length} of at least 2 devices of VFIO behind an IOMMU, each in a group of its own ("anydma bind" gives it some; npm run bench:vm has some)`;
  // The kind that is kept for DPDK, as long as there are others.
  const isNetwork = ({ ids }: PciFunction): boolean => ids.classCode >>> 16 === 2;
  const [ours, c, ...rest] = [...found.filter((each) => !isNetwork(each)), ...found.filter(isNetwork)];
  const dpdk = rest.find(isNetwork);
  return { ours, c, ways, dpdk, bare: rest.find((each) => each !== dpdk) };
}

/** A program and its version; or the reason why there is none. */
async function startPeer(name: string): Promise<Versioned | string> {
  const peer = Peer.start(name);
  return typeof peer === 'string' ? peer : { peer, version: `${LINUX}, ${await peer.askText('version')}` };
}

async function startDpdk(device: PciFunction | undefined): Promise<Versioned | string> {
  if (device === undefined) return 'no network device of VFIO to spare for DPDK';
  const dpdk = await startPeer('dpdk-extmem');
  if (typeof dpdk === 'string') return dpdk;
  try {
    await dpdk.peer.ask(`open ${device.address}`);
    return dpdk;
  } catch (error) {
    await dpdk.peer[Symbol.asyncDispose]();
    return `DPDK does not start: ${String(error)}`;
  }
}

/** The library with one device, and the memory: registered, and a second time as bytes that are not. */
class Ours implements AsyncDisposable {
  readonly eal: Eal;
  readonly device: Device;
  readonly memory: ExternalMemory;
  readonly #iovas = new Map<number, number>();
  readonly #view: ArrayBuffer;
  readonly #undo: () => void;

  private constructor(eal: Eal, device: Device, memory: ExternalMemory, view: ArrayBuffer, undo: () => void) {
    this.eal = eal;
    this.device = device;
    this.memory = memory;
    this.#view = view;
    this.#undo = undo;
  }

  static async open(
    { address }: PciFunction,
    iommu: 'type1' | 'iommufd',
    fd: number,
    hugePageSize: number | undefined,
    origins: boolean | undefined,
  ): Promise<Ours> {
    const eal = await Eal.start({ iommu, origins });
    const { memory: port } = eal.platform;
    const device = await eal.probe(`bus=pci,addr=${address}/driver=raw`);
    const memory = eal.external.fromFd(fd, { length: LENGTH, ...(hugePageSize && { pageSize: hugePageSize }) });
    const va = port.map({ length: LENGTH, fd });
    const view = port.view(va, LENGTH);
    for (const bytes of [memory.bytes(), new Uint8Array(view)])
      for (let at = 0; at < LENGTH; at += 4 * KiB) bytes[at] = 1;
    const ours = new Ours(eal, device, memory, view, () => {
      port.detach(view);
      port.unmap(va, LENGTH);
    });
    ours.map(4 * KiB, WARM_UP);
    ours.register(4 * KiB, WARM_UP / 4);
    return ours;
  }

  /** Where the domain puts so many bytes. */
  iovaOf(size: number): number {
    const known = this.#iovas.get(size);
    if (known !== undefined) return known;
    const mapping = this.device.dmaMap({ va: this.memory.va, length: size });
    const { iova } = mapping;
    mapping.unmap();
    this.#iovas.set(size, iova);
    return iova;
  }

  map(length: number, count: number): number {
    const { device } = this;
    const { va } = this.memory;
    const pairs = (length: number, count: number): void => {
      for (let i = 0; i < count; i++) device.dmaMap({ va, length }).unmap();
    };
    pairs(4 * KiB, SETTLE);
    return time(() => pairs(length, count));
  }

  register(length: number, count: number): number {
    const { device, eal } = this;
    const pairs = (length: number, count: number): void => {
      const bytes = new Uint8Array(this.#view, 0, length);
      for (let i = 0; i < count; i++) {
        const memory = eal.external.register(bytes);
        device.dmaMap(memory).unmap();
        memory.unregister();
      }
    };
    pairs(4 * KiB, SETTLE);
    return time(() => pairs(length, count));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.memory.unregister();
    this.#undo();
    await this.eal.stop();
  }
}

const C = 'C';

function mapName(size: number, what: string): string {
  return `map + unmap of ${formatSize(size)}, ${what}`;
}

function mapCases(ours: Ours, bare: Ours | undefined, c: Versioned | string, what: string): Case[] {
  return SIZES.flatMap(({ size, count, goal }) =>
    casesOf(mapName(size, what), { size, count }, [ours, bare], (library) => library.map(size, count), {
      name: C,
      peer: c,
      order: (size, count) => `pairs ${count} ${size} ${ours.iovaOf(size)}`,
      goal,
    }),
  );
}

function registerCases(ours: Ours, bare: Ours | undefined, dpdk: Versioned | string, what: string): Case[] {
  return REGISTERED.flatMap(({ size, count, goal }) =>
    casesOf(
      `register + map + unmap + unregister of ${formatSize(size)}, ${what}`,
      { size, count },
      [ours, bare],
      (library) => library.register(size, count),
      // DPDK has type1 only.
      {
        name: 'DPDK with type1',
        peer: dpdk,
        order: (size, count) => `pairs ${count} ${size}`,
        goal: goal ?? { times: 1.05, of: nameAgainst(mapName(size, what), C) },
      },
    ),
  );
}

/** What the case of a peer is called. */
function nameAgainst(what: string, peer: string): string {
  return `${what}, ${peer}`;
}

/** One piece of work: the library's, as it is and without origins, and the peer's. In time that goes by. */
function casesOf(
  what: string,
  { size, count }: { readonly size: number; readonly count: number },
  [ours, bare]: readonly [Ours, Ours | undefined],
  work: (library: Ours) => number,
  against: {
    readonly name: string;
    readonly peer: Versioned | string;
    readonly order: (size: number, count: number) => string;
    readonly goal: Goal | undefined;
  },
): Case[] {
  const { peer, goal } = against;
  const theirs = nameAgainst(what, against.name);
  const common = { unit: 'us', count } as const;
  const library = {
    ...common,
    ...(typeof peer === 'string' ? { note: peer, versions: LINUX } : { to: theirs, goal, versions: peer.version }),
  };
  const cases: Case[] = [{ ...library, name: what, round: () => work(ours) }];
  if (bare !== undefined) cases.push({ ...library, name: `${what}, no origins`, round: () => work(bare) });
  if (typeof peer !== 'string')
    cases.push({
      ...common,
      name: theirs,
      versions: peer.version,
      round: async () => {
        await peer.peer.ask(against.order(4 * KiB, SETTLE));
        return (await peer.peer.ask(against.order(size, count)))[0] / 1e6;
      },
    });
  return cases;
}
