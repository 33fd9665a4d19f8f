/**
 * The kernel's model (test/fakes/vfio/kernel.ts), which the tests that need no privileges run on, against this kernel: the same
 * calls on both, in the same random order, and every errno, byte count and window compared.
 */
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, isDmaError, KiB, Range, type DmaAccess, type Iova, type Va } from '../../../src/index.js';
import type { Platform } from '../../../src/entry/driver.js';
import { PciSysfs } from '../../../src/bus/pci/sysfs.js';
import { Containers, type KernelSpace, type VfioNode } from '../../../src/vfio/containers.js';
import { IommufdSpace } from '../../../src/vfio/iommufd.js';
import { fakeVfioKernel } from '../../fakes/vfio/kernel.js';
import { Type1Space } from '../../../src/vfio/type1.js';
import { bindToVfio, CHOICE, EDU, EDU_SECOND, width } from '../guest.js';
import { dice } from '../dice.js';

const PAGE = 4 * KiB;
const STEPS = 1500;
const PAGES = 64;
/** IOVAs that are used most: few, so that mappings collide. */
const IOVA_PAGES = 96;
const ACCESSES: readonly DmaAccess[] = ['read', 'write', 'read-write'];

before(() => bindToVfio([EDU, EDU_SECOND]));

/** Two address spaces of one kernel, each with a device. */
interface Kernel {
  readonly spaces: readonly (Type1Space | IommufdSpace)[];
  close(): void;
}

function open(platform: Platform, nodes: readonly VfioNode[]): Kernel {
  const containers = new Containers(platform, { choice: CHOICE });
  const opened = nodes.map((node, i) => containers.open(i === 0 ? containers.default : containers.create(), node));
  return {
    spaces: opened.map(({ space }) => known(space)),
    close: () => assert.deepEqual(containers.close(), []),
  };
}

function known(space: KernelSpace): Type1Space | IommufdSpace {
  if (space instanceof Type1Space || space instanceof IommufdSpace) return space;
  throw new Error(`an address space of kind ${space.kind}`);
}

/** What a call came to. */
function outcome(call: () => number | undefined): number | string {
  try {
    return call() ?? 'ok';
  } catch (error) {
    if (!isDmaError(error)) throw error;
    return error.code;
  }
}

/** One call, to be made of both kernels, and what it is called. */
type Step = [string, (kernel: Kernel) => number | undefined];

/** What there is to map. */
interface Memory {
  /** PAGES pages of ordinary memory */
  readonly va: Va;
  /** as many that are read-only */
  readonly readOnly: Va;
  /** a page that is there, and one behind it that is not */
  readonly brink: Va;
  /** a memfd with PAGES pages */
  readonly fd: number;
}

/** @param recent what calls were made for last; half of those that unmap are for the same, or a little more */
function stepOf(roll: (below: number) => number, memory: Memory, recent: { iova: Iova; length: number }[]): Step {
  const which = roll(2);
  const again = recent.length > 0 && roll(3) === 0 ? recent[roll(recent.length)] : undefined;
  const iova = again?.iova ?? iovaOf(roll);
  const length =
    again === undefined
      ? roll(12) === 0
        ? oddLength(roll)
        : (1 + roll(8)) * PAGE
      : again.length + (roll(4) === 0 ? roll(8) * PAGE : 0);
  recent.push({ iova, length });
  if (recent.length > 16) recent.shift();
  const access = ACCESSES[roll(3)];
  const space = (kernel: Kernel): Type1Space | IommufdSpace => kernel.spaces[which];
  const kind = roll(40) === 0 ? 0 : 1 + roll(19);
  const call = (text: string): string => `${text} of space ${which}, IOVA 0x${iova.toString(16)}, length ${length}`;
  if (kind === 0) return [`all of space ${which} unmapped`, (kernel) => space(kernel).unmapAll()];
  if (kind < 7) return [call('unmap'), (kernel) => space(kernel).unmap({ iova, length })];
  const page = roll(PAGES - 8);
  const fd = kind < 11 && CHOICE === 'iommufd';
  if (fd && kind < 9) {
    // The end of the file is met as well.
    const offset = (page + (roll(6) === 0 ? 8 : 0)) * PAGE + (roll(12) === 0 ? 512 : 0);
    return [
      call(`map of ${access} of the file at ${offset}`),
      (kernel) => {
        const there = space(kernel);
        assert.ok(there instanceof IommufdSpace);
        there.mapFile(memory.fd, offset, iova, length, access);
        return undefined;
      },
    ];
  }
  if (fd) {
    const from = roll(3) === 0 || recent.length === 0 ? iovaOf(roll) : recent[roll(recent.length)].iova;
    return [
      call(`copy of ${access} from 0x${from.toString(16)} of the other`),
      (kernel) => {
        const [there, other] = [space(kernel), kernel.spaces[1 - which]];
        assert.ok(there instanceof IommufdSpace && other instanceof IommufdSpace);
        there.copyFrom(other, from, iova, length, access);
        return undefined;
      },
    ];
  }
  const va = vaOf(roll, memory, page);
  return [
    call(`map of ${access} from ${va.toString(16)}`),
    (kernel) => {
      const there = space(kernel);
      if (there instanceof IommufdSpace) there.mapVa(va, iova, length, access);
      else there.map({ va, iova, length, access });
      return undefined;
    },
  ];
}

function vaOf(roll: (below: number) => number, memory: Memory, page: number): Va {
  const choice = roll(24);
  if (choice === 0) return 0x10000 as Va;
  if (choice === 1) return memory.brink;
  if (choice === 2) return (memory.va + page * PAGE + 256) as Va;
  return ((choice < 6 ? memory.readOnly : memory.va) + page * PAGE) as Va;
}

function iovaOf(roll: (below: number) => number): Iova {
  const near = (place: number): Iova => (place + (roll(16) - 8) * PAGE) as Iova;
  switch (roll(16)) {
    case 0:
      return near(0xfee00000);
    case 1:
      return near(0xfef00000);
    case 2:
      return near(2 ** width());
    case 3:
      return ((1 + roll(IOVA_PAGES)) * PAGE + 1024) as Iova;
    default:
      return (roll(IOVA_PAGES) * PAGE) as Iova;
  }
}

function oddLength(roll: (below: number) => number): number {
  return [0, 1, PAGE - 1, PAGE + 1, 2 ** 40, 2 ** 52 - PAGE][roll(6)];
}

for (const seed of [11, 12, 13])
  test(`random calls, seed ${seed}: this kernel does what the model does`, async (t) => {
    await using eal = await Eal.start();
    const { platform, external } = eal;
    using memory = external.allocate(PAGES * PAGE, { source: 'memfd' });
    const fd = memory.area.backing?.fd ?? -1;
    using readOnly = external.fromFd(fd, { writable: false });
    const brink = platform.memory.reserve(2 * PAGE, PAGE);
    platform.memory.commit(brink, { length: PAGE });
    const sysfs = new PciSysfs(platform.kernel);
    const nodes = [EDU, EDU_SECOND].map((name): VfioNode => {
      const { group, vfioName } = sysfs.read(name) ?? assert.fail(`no ${name}`);
      return { name, group, device: vfioName === undefined ? undefined : `/dev/vfio/devices/${vfioName}` };
    });
    using model = fakeVfioKernel({
      iommu: CHOICE === 'type1' ? 'type1' : 'both',
      width: width(),
      devices: nodes.map(({ name }) => ({ name })),
      platform,
    });
    const real = open(platform, nodes);
    const modelled = open(
      model.platform,
      nodes.map(({ name }) => model.node(name)),
    );
    const places: Memory = { va: memory.va, readOnly: readOnly.va, brink, fd };
    const roll = dice(seed);
    const counts = new Map<string, number>();
    const wrong: string[] = [];
    const recent: { iova: Iova; length: number }[] = [];
    try {
      for (let step = 0; step < STEPS; step++) {
        const [text, call] = stepOf(roll, places, recent);
        const [here, there] = [real, modelled].map((kernel) => outcome(() => call(kernel)));
        const kind = `${text.split(' ')[0]}: ${typeof here === 'number' ? (here === 0 ? 'no bytes' : 'bytes') : here}`;
        counts.set(kind, (counts.get(kind) ?? 0) + 1);
        if (here !== there) {
          wrong.push(`step ${step}: ${text}: this kernel says ${here}, the model ${there}`);
          // From here on they would differ all the time.
          for (const { spaces } of [real, modelled]) for (const space of spaces) space.unmapAll();
        }
      }
      t.diagnostic([...counts].map(([kind, count]) => `${kind} ${count}`).join(', '));
      assert.deepEqual(wrong, []);
      for (const [i, space] of real.spaces.entries()) compareFacts(space, modelled.spaces[i]);
    } finally {
      real.close();
      modelled.close();
      platform.memory.unmap(brink, 2 * PAGE);
    }
    assert.deepEqual(model.leaks(), []);
  });

/** Are the constraints the same that the two tell? */
function compareFacts(real: Type1Space | IommufdSpace, modelled: Type1Space | IommufdSpace): void {
  const windows = (space: Type1Space | IommufdSpace): string[] =>
    (space instanceof Type1Space ? space.info.windows : space.windows).map(String);
  assert.deepEqual(windows(real), windows(modelled));
  assert.deepEqual(windows(real).length, 2, String(new Range(0xfee00000 as Iova, 0x100000)));
  if (!(real instanceof Type1Space) || !(modelled instanceof Type1Space)) return;
  assert.equal(real.available(), modelled.available());
  const { entryLimit, tracksDirtyPages, pageSizes } = real.info;
  assert.deepEqual({ entryLimit, tracksDirtyPages, smallest: pageSizes[0] }, { ...factsOf(modelled) });
}

function factsOf({ info }: Type1Space): object {
  return { entryLimit: info.entryLimit, tracksDirtyPages: info.tracksDirtyPages, smallest: info.pageSizes[0] };
}
