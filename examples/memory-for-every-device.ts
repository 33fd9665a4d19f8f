/** Memory that every device reaches without being told: the library's own, a heap over the program's, and a pool. */
import { Eal, KiB, MiB } from 'anydma';

await using eal = await Eal.start({ memory: { noHuge: true } });
const early = await eal.probe('vdev:copy0');

using block = eal.malloc(64 * KiB, { align: 4096, zero: true });
eal.heap.create('mine');
using memory = eal.external.allocate(1 * MiB);
eal.heap.addMemory('mine', memory); // its content is kept
using own = eal.malloc(4 * KiB, { heap: 'mine' });
using packets = eal.pools.create({ elements: 256, elementSize: 2 * KiB, cache: 32 });

const late = await eal.probe('vdev:edu0'); // what is there is mapped for it before it is handed out
for (const device of [early, late]) {
  const at = [block.va, own.va].map((va) => device.domain?.iovaOf(va).toString(16));
  const iovas = packets.iovasFor(device);
  console.log(`${device.name}: block 0x${at[0]}, own 0x${at[1]}, first packet 0x${iovas[0].toString(16)}`);
}

const burst = new Int32Array(32);
if (!packets.get(burst, burst.length)) throw new Error('the pool is empty');
for (const packet of burst) packets.bytes(packet).fill(packet);
packets.put(burst, burst.length);
console.log(`${packets.available} of ${packets.elements} packets are free`);

own.free();
eal.heap.removeMemory('mine', memory.va, memory.length);
