/** Memory that the program has already: a page-aligned part of a Buffer, mapped for two devices, all or nothing. */
import { DmaError, Eal, eduDriver, KiB } from 'anydma';

await using eal = await Eal.start();
const copy = await eal.probe('vdev:copy0');
const edu = await eal.probe('vdev:edu0'); // reaches 28 bits of IOVA only, so that its addresses come from the allocator

const buffer = Buffer.alloc(64 * KiB);
let part = buffer;
try {
  eal.external.register(buffer).unregister();
} catch (error) {
  if (!(error instanceof DmaError)) throw error;
  console.log(error.message); // says which part of it would do
  const aligned = /subarray\((\d+), (\d+)\)/.exec(error.hint ?? '');
  if (aligned === null) throw error;
  part = buffer.subarray(Number(aligned[1]), Number(aligned[2]));
}

using memory = eal.external.register(part);
using group = eal.dmaMapAll(memory, [copy, edu]);
for (const mapping of group.mappings) console.log(`${mapping.device}: IOVA 0x${mapping.iova.toString(16)}`);

part.write('through the device and back');
const iova = group.of(edu)?.iova ?? 0;
await edu.use(eduDriver).copyIn(iova, 0, 32);
part.fill(0);
await edu.use(eduDriver).copyOut(iova, 0, 32);
console.log(part.toString('latin1', 0, 27));

try {
  memory.unregister(); // refused: two devices can still reach it
} catch (error) {
  console.log(String(error));
}
