/** A device in another process copies this process's memory. The README's example, as a program. */
import { copyEngineDriver, Eal, MiB } from 'anydma';
import { spawnDevice } from 'anydma/model';

await using eal = await Eal.start();
await using served = await spawnDevice('copy');
const device = await eal.probe(`vfio-user:${served.socketPath}`);

using source = eal.external.allocate(64 * MiB);
using target = eal.external.allocate(64 * MiB);
source.bytes().fill(42);

using from = device.dmaMap(source, { access: 'read' });
using to = device.dmaMap(target);
await device.use(copyEngineDriver).copy(from.iova, to.iova, 64 * MiB);

console.log(`byte 12345 of the target: ${target.bytes()[12_345]}`);
if (Buffer.compare(source.bytes(), target.bytes()) !== 0) throw new Error('the copy differs');

const { iova } = to;
to.unmap();
console.log(device.explain(iova).text);
