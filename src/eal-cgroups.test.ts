/** Limits of control groups: an error with their figures, and no signal. The virtual machines run these as well (test/vm). */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { dmaError } from '../test/shared/errors.js';
import { Eal } from './eal.js';
import { openPlatform } from './platform/open.js';
import { cgroupForTest } from '../test/shared/cgroups.js';
import { hugePagesForTest } from '../test/shared/real-hugepages.js';
import { MiB } from './units.js';

const real = openPlatform();
const skip = real.limitation ?? false;
const moduleUrl = (path: string): string => JSON.stringify(new URL(path, import.meta.url).href);
const PACKAGE = moduleUrl('./index.js');

const hugetlbCgroupProgram = `
  import { Eal, MiB } from ${PACKAGE};
  const eal = await Eal.start({ memory: { pageSizes: [2 * MiB] } });
  const told = [];
  for (const source of ['memfd', 'anonymous'])
    try {
      eal.external.allocate(8 * MiB, { hugePageSize: 2 * MiB, source }).bytes().fill(1);
    } catch (error) {
      told.push(error.code, error.message);
    }
  try {
    eal.malloc(8 * MiB);
  } catch (error) {
    told.push(error.code, error.message);
  }
  const memory = eal.external.allocate(2 * MiB, { hugePageSize: 2 * MiB });
  memory.bytes().fill(1);
  memory.unregister();
  await eal.stop();
  console.log(JSON.stringify(told));`;

test('hugepages beyond the limit of a control group: ENOMEM that names it, and no SIGBUS', { skip }, async (t) => {
  const pages = hugePagesForTest(real, 6);
  if (typeof pages === 'string') return t.skip(pages);
  try {
    const group = cgroupForTest('hugetlb', { 'hugetlb.2MB.max': 4 * MiB });
    if (typeof group === 'string') return t.skip(group);
    try {
      const { status, signal, out, err } = await group.run(hugetlbCgroupProgram);
      assert.deepEqual([status, signal], [0, null], err);
      const told = JSON.parse(out) as string[];
      assert.deepEqual([told[0], told[2], told[4]], ['ENOMEM', 'ENOMEM', 'ENOMEM']);
      for (const message of [told[1], told[3], told[5]]) assert.match(message, /of the 4 MiB of .*hugetlb\.2MB/);
    } finally {
      group.giveBack();
    }
  } finally {
    pages.giveBack();
  }
});

test('a server in a control group without hugepages refuses them to its client and lives', { skip }, async (t) => {
  const pages = hugePagesForTest(real, 4);
  if (typeof pages === 'string') return t.skip(pages);
  const directory = mkdtempSync(join(tmpdir(), 'served-'));
  try {
    const group = cgroupForTest('hugetlb', { 'hugetlb.2MB.max': 0 });
    if (typeof group === 'string') return t.skip(group);
    try {
      const socket = join(directory, 'socket');
      const served = group.run(`
        import { openPlatform } from ${moduleUrl('./platform/open.js')};
        import { deviceModel } from ${moduleUrl('./vfio-user/devices/catalog.js')};
        import { serve } from ${moduleUrl('./vfio-user/server.js')};
        const model = deviceModel('copy', {});
        await serve(openPlatform(), { socketPath: ${JSON.stringify(socket)}, model, once: true }).closed;`);
      for (let i = 0; i < 2000 && !existsSync(socket); i++) await delay(5);
      const eal = await Eal.start({ platform: real, memory: { noHuge: true } });
      const device = await eal.probe(`vfio-user:${socket}`);
      const memory = eal.external.allocate(2 * MiB, { hugePageSize: 2 * MiB, populate: false });
      assert.throws(() => device.dmaMap(memory), dmaError('ENOMEM'));
      using ordinary = eal.external.allocate(MiB);
      using mapping = device.dmaMap(ordinary);
      mapping.unmap();
      ordinary.unregister();
      memory.unregister();
      await eal.stop();
      const { status, signal, err } = await served;
      assert.deepEqual([status, signal], [0, null], err);
    } finally {
      group.giveBack();
    }
  } finally {
    rmSync(directory, { recursive: true });
    pages.giveBack();
  }
});

test(
  'memory beyond the limit of a control group: ENOMEM with its figures, and the process lives',
  { skip },
  async (t) => {
    const group = cgroupForTest('memory', { 'memory.max': 384 * MiB });
    if (typeof group === 'string') return t.skip(group);
    try {
      const { status, signal, out, err } = await group.run(`
      import { Eal, MiB } from ${PACKAGE};
      const eal = await Eal.start({ memory: { noHuge: true } });
      const told = [];
      const attempt = (work) => {
        try { work(); told.push('had'); } catch (error) { told.push(error.code + ' ' + error.message); }
      };
      attempt(() => eal.malloc(1024 * MiB));
      attempt(() => eal.external.allocate(1024 * MiB));
      attempt(() => eal.external.allocate(1024 * MiB, { source: 'anonymous' }));
      attempt(() => { const block = eal.malloc(64 * MiB); block.bytes().fill(1); block.free(); });
      attempt(() => { const memory = eal.external.allocate(64 * MiB); memory.bytes().fill(1); memory.unregister(); });
      await eal.stop();
      console.log(JSON.stringify(told));`);
      assert.deepEqual([status, signal], [0, null], err);
      const told = JSON.parse(out) as string[];
      for (const each of told.slice(0, 3))
        assert.match(each, /^ENOMEM .*of the 384 MiB of .*\/memory\.(max|limit_in_bytes)/);
      assert.deepEqual(told.slice(3), ['had', 'had']);
    } finally {
      group.giveBack();
    }
  },
);

test('processes that grow at the same time: each ends in ENOMEM, and none is killed', { skip }, async (t) => {
  const group = cgroupForTest('memory', { 'memory.max': 448 * MiB });
  if (typeof group === 'string') return t.skip(group);
  try {
    const program = `
      import { Eal, MiB } from ${PACKAGE};
      const eal = await Eal.start({ memory: { noHuge: true }, onForgotten: () => undefined });
      const kept = [];
      let had = 0;
      try {
        for (;;) {
          kept.push(had % 2 === 0 ? eal.malloc(4 * MiB) : eal.external.allocate(4 * MiB));
          had++;
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
      } catch (error) {
        console.log(error.code, had);
      }
      // The others are at their limit meanwhile.
      await new Promise((resolve) => setTimeout(resolve, 500));
      for (const each of kept) each.bytes().fill(1);
      process.exit(0);`;
    const ends = await Promise.all(Array.from({ length: 3 }, () => group.run(program)));
    let pieces = 0;
    for (const { status, signal, out, err } of ends) {
      assert.deepEqual([status, signal], [0, null], err);
      const [code, had] = out.trim().split(' ');
      assert.equal(code, 'ENOMEM', out);
      pieces += Number(had);
    }
    // They had most of it, one way or another.
    assert.ok(pieces * 4 * MiB > 100 * MiB, `${pieces} pieces`);
  } finally {
    group.giveBack();
  }
});
