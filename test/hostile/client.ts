/** A process that uses the devices of vfio-user that its parent names, and tells how each step ended. */
import { Eal, isDmaError, KiB, type Device } from '../../src/index.js';

process.on('message', (name: string) => {
  void use(name).then((outcome) => process.send?.(outcome));
});

async function use(name: string): Promise<readonly string[]> {
  const outcome: string[] = [];
  const step = async <T>(what: string, work: () => T | Promise<T>): Promise<Awaited<T> | undefined> => {
    try {
      const result = await work();
      outcome.push(`${what}: ok`);
      return result;
    } catch (error) {
      // Anything else ends this process, and is found so.
      if (!isDmaError(error)) throw error;
      outcome.push(`${what}: ${error.code}`);
      return undefined;
    }
  };
  // What goes wrong at stop is told as `stop`; what was forgotten meanwhile is meant.
  const eal = await Eal.start({ drivers: [], onForgotten: () => undefined, memory: { noHuge: true } });
  const device = await step('probe', () => eal.probe(`bus=vfio-user,name=${name}/driver=raw`));
  if (device !== undefined) await work(eal, device, step);
  await step('stop', () => eal.stop());
  return outcome;
}

async function work(
  eal: Eal,
  device: Device,
  step: <T>(what: string, work: () => T | Promise<T>) => Promise<Awaited<T> | undefined>,
): Promise<void> {
  const registers = await step('registers', () => device.access.registers(0));
  await step('read', () => registers?.read32(0));
  await step('write', () => registers?.write32(0, 1));
  await step('flush', () => registers?.flush(0));
  await step('writeRegion', () => device.access.writeRegion(0, 8, new Uint8Array(8)));
  const [memory, other] = [eal.external.allocate(64 * KiB), eal.external.allocate(64 * KiB, { source: 'anonymous' })];
  const mapping = await step('map', () => device.dmaMap(memory));
  const later = await step('mapAsync', () => device.dmaMapAsync(other));
  const block = await step('malloc', () => eal.malloc(4 * KiB));
  const interrupts = await step('interrupts', () => device.access.enableInterrupts('msi', [() => undefined]));
  await step('reset', () => device.access.reset());
  await step('interruptsOff', () => interrupts?.close());
  await step('free', () => block?.free());
  await step('unmapAsync', () => later?.unmapAsync());
  await step('unmap', () => mapping?.unmap());
}
