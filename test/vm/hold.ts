/** Holds a device with memory mapped for it, until it is killed: `node hold.js ADDRESS`. */
import { Eal, MiB, type Mapping } from '../../src/index.js';
import { CHOICE } from './guest.js';

const eal = await Eal.start({ iommu: CHOICE });
const device = await eal.probe(`pci:${process.argv[2]}`);
const memory = eal.external.allocate(MiB);
const held: Mapping[] = [device.dmaMap(memory, { iova: 0x0100_0000 })];
eal.malloc(MiB);
console.log(`holding ${held.length} mapping`);
setInterval(() => undefined, 1000);
