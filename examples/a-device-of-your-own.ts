/**
 * A device model of one's own: one register, which makes the device add up all bytes of a range of memory. It runs in this
 * process here; `serve` (see `anydma serve --help`) would put the same model behind a vfio-user socket.
 */
import { Eal, KiB, rawDriver } from 'anydma';
import type { ModelFactory } from 'anydma/model';

const ADDRESS = 0x0;
const LENGTH = 0x8;
const SUM = 0x10;

const adder: ModelFactory = (host) => {
  const registers = new Uint8Array(0x1000);
  const view = new DataView(registers.buffer);
  return {
    name: 'adder',
    identity: { vendor: 0x1234, device: 0xadd0, subsystemVendor: 0, subsystem: 0, revision: 1, classCode: 0xff0000 },
    regions: [{ index: 0, size: registers.length }],
    interrupts: { intx: 1, msi: 1, msix: 0 },
    read: (_region, offset, into) => into.set(registers.subarray(offset, offset + into.length)),
    write: (_region, offset, from) => {
      registers.set(from, offset);
      if (offset !== LENGTH) return;
      const bytes = new Uint8Array(view.getUint32(LENGTH, true));
      try {
        // All of the range is checked against what is mapped before a byte is read.
        void host.dma.read(Number(view.getBigUint64(ADDRESS, true)), bytes);
      } catch {
        bytes.fill(0); // what a device reads where nothing is mapped
      }
      view.setUint32(
        SUM,
        bytes.reduce((sum, byte) => sum + byte, 0),
        true,
      );
      host.interrupt(0);
    },
    reset: () => registers.fill(0),
    quiesce: () => undefined,
    resume: () => undefined,
  };
};

await using eal = await Eal.start();
eal.vdev.define('adder', adder);
const device = await eal.probe('vdev:adder0');
const access = device.use(rawDriver);

using memory = eal.external.allocate(4 * KiB);
memory.bytes().fill(3, 0, 100);
using mapping = device.dmaMap(memory, { access: 'read' });

const interrupted = new Promise<void>((resolve) => {
  access.enableInterrupts('msi', [resolve]);
});
const registers = access.registers(0);
registers.write64(ADDRESS, mapping.iova);
registers.write32(LENGTH, 100);
await interrupted;
console.log(`the device says ${registers.read32(SUM)}`);
if (registers.read32(SUM) !== 300) process.exitCode = 1;
