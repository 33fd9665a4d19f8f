/**
 * A server of the RDMA exchange in a process of its own, with an emulated device. It tells its parent its port, and what it has when
 * it is asked; when its parent lets go, it has to end by itself. Looking for the way to a port that is not there takes as long as
 * the kernel takes.
 */
import { verbsDriver } from '../../src/drivers/verbs-driver.js';
import { Eal } from '../../src/eal.js';
import { openPlatform } from '../../src/platform/open.js';
import { listenForPeers } from '../../src/rdma/exchange.js';
import { Fabric } from '../fakes/rdma/fabric.js';

/** What it says of itself. */
export interface VictimFacts {
  readonly port: number;
  readonly sessions: number;
  /** bytes */
  readonly rss: number;
  /** The address of its device. */
  readonly gid: string;
}

/** milliseconds */
const LOOKING = 1000;

const fabric = new Fabric();
fabric.resolveMs = LOOKING;
const platform = fabric.host(openPlatform(), [{ name: 'rxe0', ipv4: '10.0.0.1' }]);
const eal = await Eal.start({ platform, onForgotten: () => undefined });
const rdma = (await eal.probe('rdma:rxe0')).use(verbsDriver);
const server = await listenForPeers({ host: '127.0.0.1', timeoutMs: 1500, maxLine: 2 ** 18 }, async (session) => {
  using pair = rdma.createQueuePair({ sends: 1, receives: 1 });
  session.answer('echo', (question) => question);
  session.answer('big', () => 'x'.repeat(2 ** 17));
  session.answer('never', () => new Promise(() => undefined));
  session.explainFrom(rdma);
  session.greet({ pairs: [pair.address], memory: [] });
  // Who has told of no queue pair came to ask.
  if (session.hello.pairs.length > 0) await session.join(pair);
  await session.ended;
});
const gid = rdma.gids().at(-1)?.gid ?? '';
const facts = (): VictimFacts => ({
  port: server.port,
  sessions: server.sessions,
  rss: process.memoryUsage.rss(),
  gid,
});
process.on('message', () => process.send?.(facts()));
process.once('disconnect', () => {
  void server.close().then(async () => eal.stop());
});
process.send?.(facts());
