/** An RDMA device as a copier: it writes from memory of this process to other memory of this process. */
import { isDmaError, MiB, type Device, type LongWorkOptions, type Va } from '../../index.js';
import type { QueuePair, RdmaDevice } from '../../entry/rdma.js';
import { Range } from '../../ranges.js';
import { Pump } from '../rdma/pump.js';

/** Bytes of a request, and the number of requests in progress. */
const BLOCK = MiB;
const DEPTH = 16;

/** Connects two queue pairs of one device with each other. Only the second accepts remote writes. */
class Loop {
  readonly #from: QueuePair;
  readonly #to: QueuePair;

  constructor(rdma: RdmaDevice) {
    this.#from = rdma.createQueuePair({ sends: DEPTH, receives: 1, remote: 'none' });
    this.#to = rdma.createQueuePair({ sends: 1, receives: 1, remote: 'write' });
    this.#from.connect(this.#to.address);
    this.#to.connect(this.#from.address);
  }

  get pair(): QueuePair {
    return this.#from;
  }

  close(): void {
    this.#from.close();
    this.#to.close();
  }
}

/** Makes the device a `Copier` (copier.ts). The queue pairs are closed with the device. */
export function rdmaCopier(device: Device, rdma: RdmaDevice) {
  let loop: Loop | undefined;
  // By address: the keys that memory had while it was mapped.
  const keys = new Map<number, number>();

  const copy = async (from: number, to: number, length: number, watch: LongWorkOptions = {}): Promise<void> => {
    loop ??= new Loop(rdma);
    const { pair } = loop;
    const known = pair.keys.keyOf(from, length);
    if (known >= 0) keys.set(from, known);
    // After an unmap, the old key is used again, so that the device itself has to refuse it.
    const lkey = keys.get(from);
    const access = { verb: 'write', block: BLOCK, depth: DEPTH, lkey } as const;
    using target = targetAt(device, rdma, to, length);
    try {
      const remote = { address: to, rkey: target.rkey };
      await new Pump(pair, { ...access, local: { va: from, length }, remote }).run(1, watch);
    } catch (error) {
      // After a failure a queue pair can not be used again.
      loop.close();
      loop = undefined;
      if (!isDmaError(error)) throw error;
      // For an invalid key, Soft-RoCE stops the queue pair and does not say which request used it.
      const isStale = known < 0 && isDmaError(error, 'ECANCELED') && watch.signal?.aborted !== true;
      const code = isStale ? 'EACCES' : error.code;
      throw error.with({ device: device.name, code });
    }
  };
  return {
    kind: 'an RDMA device, which writes through a queue pair that is connected to another one of its own',
    usualSize: 64 * MiB,
    destination: { remote: 'write' } as const,
    copy,
    isRefusal: (error: unknown) => isDmaError(error, 'EACCES') || isDmaError(error, 'EFAULT'),
  };
}

/** The key for writing to memory: that of its mapping, or of a temporary region if the library has mapped it. */
function targetAt(
  device: Device,
  rdma: RdmaDevice,
  va: number,
  length: number,
): Disposable & { readonly rkey: number } {
  const wanted = new Range<Va>(va as Va, length);
  for (const { entries, range, rkey } of [...(device.domain?.mappings() ?? [])].filter(({ live }) => live))
    if (range.covers(wanted) && rkey !== undefined && entries.every(({ region }) => region.remote === 'write'))
      return { rkey, [Symbol.dispose]: () => undefined };
  return rdma.expose({ va: wanted.start, length }, 'write');
}
