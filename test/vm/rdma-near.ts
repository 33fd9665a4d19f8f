/** For suites in a guest: the near host of a network, as a client of the far one. See rdma-network.ts. */
import { Eal, type Device } from '../../src/index.js';
import { connectToPeer, verbsDriver, type PeerSession, type QueuePair, type RdmaDevice } from '../../src/entry/rdma.js';
import { NEAR } from './rdma-network.js';

/** What the near end works with. */
export interface Near {
  readonly eal: Eal;
  readonly device: Device;
  readonly rdma: RdmaDevice;
}

/** Starts an Eal with the RDMA device `name`. */
export async function near(name: string = NEAR.device): Promise<Near> {
  const eal = await Eal.start({ onForgotten: () => undefined });
  const device = await eal.probe(`rdma:${name}`);
  return { eal, device, rdma: device.use(verbsDriver) };
}

/** A new queue pair, joined to one of the far peer. */
export async function joinPeer(
  { rdma }: Near,
  to: { readonly host: string; readonly port: number },
  connectionManager = false,
): Promise<{ pair: QueuePair; session: PeerSession }> {
  const pair = rdma.createQueuePair();
  const session = await connectToPeer({ ...to, hello: { pairs: [pair.address], memory: [] } });
  await session.join(pair, undefined, { connectionManager });
  return { pair, session };
}
