/** For tests of the NVMe driver: an Eal with a controller of the tests, opened as programs open one. */
import { createHash } from 'node:crypto';
import type { Device } from '../../../src/bus/model.js';
import { nvmeDriver } from '../../../src/drivers/nvme/nvme-driver.js';
import type { NvmeNamespace } from '../../../src/drivers/nvme/namespace.js';
import type { Nvme } from '../../../src/drivers/nvme/nvme.js';
import { Eal } from '../../../src/eal.js';
import type { Block } from '../../../src/memory/heap/heap.js';
import { nvmeModel } from '../../../src/vfio-user/devices/nvme/nvme.js';
import type { NvmeModelOptions } from '../../../src/vfio-user/devices/nvme/options.js';
import { fakeNvme, type FakeNvme, type FakeNvmeOptions } from './controller.js';

export const QUIET = { memory: { onNotice: () => undefined } };

/** A controller that is open, with its first namespace, and memory for commands: 64 KiB at a page. */
export interface Room {
  readonly eal: Eal;
  readonly device: Device;
  readonly ssd: Nvme;
  readonly disk: NvmeNamespace;
  readonly block: Block;
}

/** With a controller that does what it is told: see {@link FakeNvme}. */
export function withDisk(
  options: FakeNvmeOptions,
  work: (room: Room & { readonly fake: FakeNvme }) => Promise<void>,
): Promise<void> {
  const { factory, controller } = fakeNvme(options);
  return withModel(factory, (room) => work({ ...room, fake: controller() }));
}

/** With the controller that `anydma serve nvme` serves, in this process. */
export function withServed(options: NvmeModelOptions, work: (room: Room) => Promise<void>): Promise<void> {
  return withModel(nvmeModel(options), work);
}

async function withModel(
  factory: Parameters<Eal['vdev']['define']>[1],
  work: (room: Room) => Promise<void>,
): Promise<void> {
  await using eal = await Eal.start(QUIET);
  eal.vdev.define('disk', factory);
  const device = await eal.probe('vdev:disk0');
  const ssd = device.use(nvmeDriver);
  const [disk] = ssd.namespaces;
  const block = eal.malloc(64 * 1024, { align: 4096 });
  await work({ eal, device, ssd, disk, block });
  if (block.live) block.free();
}

/** Fills bytes so that each seed and each block has others. */
export function fill(bytes: Uint8Array, seed: number): Uint8Array {
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 31 + seed * 17 + (i >> 8)) & 0xff;
  return bytes;
}

export const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
