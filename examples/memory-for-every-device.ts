/** Memory that every device reaches without being told: the library's own, a heap over the program's, and a pool. */
import { Eal, hex, KiB, MiB } from 'anydma';

await using eal = await Eal.start({ memory: { noHuge: true } });
const early = await eal.probe('vdev:copy0');

using block = eal.malloc(64 * KiB, { align: 4096, zero: true });
eal.heaps.create('mine');
using memory = eal.external.allocate(1 * MiB);
eal.heaps.addMemory('mine', memory); // its content is kept
using own = eal.malloc(4 * KiB, { heap: 'mine' });
using packets = eal.pools.create({ elements: 256, elementSize: 2 * KiB, cache: 32 });

const late = await eal.probe('vdev:edu0'); // what is there is mapped for it before it is handed out
for (const device of [early, late]) {
  const [first = 0] = packets.iovasFor(device);
  const at = [device.iovaOf(block), device.iovaOf(own), first].map(hex);
  console.log(`${device.name}: block, own and first packet at ${at.join(', ')}`);
}

const burst = new Int32Array(32);
if (!packets.get(burst, burst.length)) throw new Error('the pool is empty');
for (const packet of burst) packets.bytes(packet).fill(packet);
packets.put(burst, burst.length);
console.log(`${packets.available} of ${packets.elements} packets are free`);

own.free();
eal.heaps.removeMemory('mine', memory);
