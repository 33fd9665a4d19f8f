/**
 * A new program takes a real PCI device over from the running one, while it copies: iommufd goes on with all mappings, and
 * the pages count for the new process. VFIO type 1 can not do that.
 */
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, eduDriver, isDmaError, KiB, rawDriver, type Device, type Iova } from '../../../src/index.js';
import type { Driver, Edu } from '../../../src/entry/driver.js';
import { EDU_COMMAND, EDU_REGISTER } from '../../../src/vfio-user/devices/edu-layout.js';
import { ownPlaces } from '../../shared/places.js';
import { SecondaryProcess } from '../../shared/secondary-process.js';
import { bindToVfio, CHOICE, EDU, KIND } from '../guest.js';

ownPlaces();
before(() => bindToVfio([EDU]));

const QUIET = { iommu: CHOICE, onForgotten: (): void => undefined };
const IOVA = 0x100000 as Iova;
const SLOT = 256;

/** What the running program keeps. */
interface Running {
  readonly eal: Eal;
  readonly device: Device;
  readonly loop: Promise<{ readonly done: number; readonly code: string }>;
  readonly handed: Promise<{ readonly pid: number }>;
  /** Transfers that were complete. */
  readonly count: () => number;
}

/** A program whose edu fills slot after slot with 9, for as long as it may. */
async function looping(): Promise<SecondaryProcess> {
  const running = await SecondaryProcess.start();
  await running.run(
    async ({ anydma, kept }, { address, iommu, iova, slot }) => {
      const eal = await anydma.Eal.start({ name: 'loop', iommu, onForgotten: () => undefined });
      const memory = eal.external.allocate(2 ** 20, { label: 'slots' });
      const device = await eal.probe(`pci:${address}`);
      device.dmaMap(memory, { iova });
      const edu = device.use(eal.drivers.find(({ name }) => name === 'edu') as Driver<Edu>);
      const bytes = memory.bytes();
      bytes.fill(9, 0, slot);
      await edu.copyIn(iova, 0, slot);
      edu.enableInterrupt(() => undefined);
      let done = 1;
      const loop = async (): Promise<unknown> => {
        for (; ; done++)
          try {
            await edu.copyOut(iova + slot * done, 0, slot);
          } catch (error) {
            return { done, code: (error as { code: string }).code };
          }
      };
      Object.assign(kept, { eal, device, loop: loop(), count: () => done });
      while (done < 4) await new Promise((resolve) => setTimeout(resolve, 10));
    },
    { address: EDU, iommu: CHOICE, iova: IOVA, slot: SLOT },
  );
  return running;
}

/** It hands over, or goes on. */
async function offer(running: SecondaryProcess): Promise<void> {
  await running.run(({ kept }) => {
    const { eal } = kept as Running;
    const handed = eal.handOver();
    handed.catch(() => undefined);
    Object.assign(kept, { handed });
  });
}

/** Pinned pages that count for this process, in KiB. */
function pinned(pid: number | 'self'): number {
  return Number(/VmPin:\s*(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

if (CHOICE === 'type1')
  test('type 1 refuses with its reason, and the running program goes on', async () => {
    await using running = await looping();
    await offer(running);
    await assert.rejects(
      Eal.takeOver('loop', QUIET),
      (error) => isDmaError(error, 'ENOTSUP') && /type 1/.test(error.reason) && /iommufd/.test(error.hint ?? ''),
    );
    const more = await running.run(async ({ kept }) => {
      const { count } = kept as Running;
      const before = count();
      while (count() < before + 3) await new Promise((resolve) => setTimeout(resolve, 10));
      return count() - before;
    });
    assert.equal(more, 3);
  });
else {
  test('edu copies in a loop: not one transfer is lost, and DMA goes on when the old program is gone', async () => {
    const running = await looping();
    await offer(running);
    await using eal = await Eal.takeOver('loop', QUIET);
    const { done, code, pid } = await running.run(async ({ kept }) => {
      const { handed, loop, eal } = kept as Running;
      const { pid } = await handed;
      const ended = await loop;
      await eal.stop();
      return { pid, ...ended };
    });
    assert.deepEqual({ code, pid }, { code: 'ECANCELED', pid: process.pid });
    await running.kill();
    const [device] = eal.devices();
    const [memory] = eal.external;
    assert.equal(device.domain?.kind, KIND);
    assert.equal(device.iovaOf(memory), IOVA);
    const slot = (n: number): number[] => [...memory.bytes(SLOT * n, SLOT)];
    for (let n = 1; n < done; n++) assert.deepEqual(slot(n), Array<number>(SLOT).fill(9), `slot ${n} of ${done}`);
    const edu = device.use(eduDriver);
    let interrupts = 0;
    edu.enableInterrupt(() => interrupts++);
    for (let n = done; n < done + 4; n++) await edu.copyOut(IOVA + SLOT * n, 0, SLOT);
    for (let n = done; n < done + 4; n++) assert.deepEqual(slot(n), Array<number>(SLOT).fill(9), `slot ${n}`);
    // Signals that come together are one.
    assert.ok(interrupts > 0);
    // And all else works: what is mapped now, what is unmapped, and another program.
    using more = eal.external.allocate(64 * KiB);
    const mapping = device.dmaMap(more);
    await edu.copyOut(mapping.iova, 0, SLOT);
    assert.equal(more.bytes()[SLOT - 1], 9);
    mapping.unmap();
    await eal.remove(device);
  });

  test('a transfer that runs while the program changes is complete', async () => {
    await using running = await SecondaryProcess.start();
    await running.run(
      async ({ anydma, kept }, { address, iommu, iova, registers }) => {
        const eal = await anydma.Eal.start({ name: 'running', iommu, onForgotten: () => undefined });
        const memory = eal.external.allocate(65536, { label: 'target' });
        memory.bytes().fill(5, 0, 2048);
        const device = await eal.probe(`bus=pci,addr=${address}/driver=raw`);
        device.dmaMap(memory, { iova });
        const bar = device.access.registers(0);
        const transfer = (from: number, to: number, command: number): void => {
          bar.write32(registers.source, from);
          bar.write32(registers.destination, to);
          bar.write32(registers.count, 2048);
          bar.write32(registers.command, command);
        };
        transfer(iova, 0x40000, 1);
        while ((bar.read32(registers.command) & 1) !== 0) await new Promise((resolve) => setTimeout(resolve, 5));
        // It takes 100 ms; handing over begins at once.
        const handed = eal.handOver({ prepare: () => transfer(0x40000, iova + 4096, 3) });
        Object.assign(kept, { handed });
      },
      {
        ...{ address: EDU, iommu: CHOICE, iova: IOVA },
        registers: {
          source: EDU_REGISTER.DMA_SOURCE,
          destination: EDU_REGISTER.DMA_DESTINATION,
          count: EDU_REGISTER.DMA_COUNT,
          command: EDU_REGISTER.DMA_COMMAND,
        },
      },
    );
    await using eal = await Eal.takeOver('running', QUIET);
    await running.kill();
    const [device] = eal.devices();
    const [memory] = eal.external;
    const registers = device.use(rawDriver).registers(0);
    while ((registers.read32(EDU_REGISTER.DMA_COMMAND) & EDU_COMMAND.RUN) !== 0)
      await new Promise((resolve) => setTimeout(resolve, 5));
    assert.ok(memory.bytes(4096, 2048).every((byte) => byte === 5));
  });

  for (const when of ['before', 'after'] as const)
    test(`a new program that is killed ${when} the pages count for it leaves the device to the running one`, async () => {
      await using running = await looping();
      await offer(running);
      await using other = await SecondaryProcess.start();
      const taking = other.run(
        async ({ anydma }, { when, iommu }) => {
          const base = await anydma.Eal.start();
          const { platform } = base;
          await base.stop();
          const { call } = platform.ioctl;
          const ioctl = {
            ...platform.ioctl,
            call: (...args: Parameters<typeof call>) => {
              const isChange = args[3].includes('CHANGE_PROCESS');
              if (isChange && when === 'before') process.kill(process.pid, 'SIGKILL');
              const result = call(...args);
              if (isChange) process.kill(process.pid, 'SIGKILL');
              return result;
            },
          };
          await anydma.Eal.takeOver('loop', { iommu, platform: { ...platform, ioctl }, onForgotten: () => undefined });
        },
        { when, iommu: CHOICE },
      );
      await assert.rejects(taking, /has ended/);
      const outcome = await running.run(async ({ kept }) => {
        const { count, handed, device } = kept as Running;
        const failed = await handed.then(
          () => 'handed over',
          (error: unknown) => (error as { code: string }).code,
        );
        const before = count();
        while (count() < before + 3) await new Promise((resolve) => setTimeout(resolve, 10));
        return { failed, state: device.state };
      });
      assert.match(outcome.failed, /^(ECONNRESET|ESRCH)$/);
      assert.equal(outcome.state, 'probed');
      // It can be tried again.
      await offer(running);
      await using eal = await Eal.takeOver('loop', QUIET);
      await running.kill();
      await eal.devices()[0].use(eduDriver).copyOut(IOVA, 0, SLOT);
      assert.ok(pinned('self') >= 0);
    });
}
