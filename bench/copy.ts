/** How much the embedded copy engine copies, from memory of this process to memory of this process, in its own process. */
import { copyEngineDriver, Eal, MiB } from '../src/index.js';
import { spawnDevice } from '../src/entry/model.js';
import { measure, timeAsync, type Case, type Effort, type Result } from './harness/harness.js';
import { Peer } from './harness/peer.js';

const BYTES = 64 * MiB;
const MEMCPY = 'memcpy in C, 64 MiB';

/** Measures bulk copies. */
export async function benchCopy({ quick, progress }: Effort): Promise<Result[]> {
  progress('copy: 64 MiB');
  await using eal = await Eal.start();
  if (eal.platform.limitation !== undefined) {
    progress(`copy: left out, ${eal.platform.limitation}`);
    return [];
  }
  await using server = await spawnDevice('copy');
  const device = await eal.probe(`vfio-user:${server.socketPath}`);
  const engine = device.use(copyEngineDriver);
  using source = eal.external.allocate(BYTES);
  using target = eal.external.allocate(BYTES);
  source.bytes().fill(1);
  target.bytes().fill(2);
  using from = device.dmaMap(source);
  using to = device.dmaMap(target);
  const peer = Peer.start('memcpy');
  await using _closed = typeof peer === 'string' ? undefined : peer;

  const common = { unit: 'GB/s', count: BYTES } as const;
  const cases: Case[] = [
    {
      ...common,
      name: 'copy engine over vfio-user, 64 MiB',
      ...(typeof peer === 'string' ? { note: peer } : { to: MEMCPY }),
      round: () => timeAsync(() => engine.copy(from.iova, to.iova, BYTES)),
    },
  ];
  if (typeof peer !== 'string') {
    const round = async (): Promise<number> => (await peer.ask(String(BYTES)))[0] / 1e6;
    cases.push({ ...common, name: MEMCPY, round });
  }
  const results = await measure(cases, quick ? { warmUp: 2, measured: 7 } : { warmUp: 5, measured: 31 });
  if (Buffer.compare(source.bytes(), target.bytes()) !== 0) throw new Error('the engine did not copy');
  return results;
}
