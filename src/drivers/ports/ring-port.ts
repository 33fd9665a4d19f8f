/** A port over rings that the program has made. */
import { mustBe, mustBeObject, mustBeString } from '../../check.js';
import { invalid } from '../../errors.js';
import { Ring } from '../../memory/pool/ring.js';
import { RingPortBase, type RingPair } from './ring-port-base.js';

/**
 * A port over rings of the program, which stay the program's: this end of them. The other end is another one, in this thread, another one
 * or another process, with `rx` and `tx` exchanged.
 */
export class RingPort extends RingPortBase {
  /**
   * @param name for messages
   * @param queues the rings of each queue
   * @throws DmaError EINVAL if they are no rings with a pool
   */
  constructor(name: string, queues: readonly RingPair[]) {
    const operation = 'ringPort';
    mustBeString(name, 'the name of a port', operation);
    const pairs = Array.isArray(queues) ? queues.map((pair: RingPair) => checked(name, pair, operation)) : [];
    if (pairs.length === 0)
      throw invalid(operation, 'there are no rings', { device: name, hint: 'they are a list: [{ rx, tx }]' });
    super(name, Number(/\d+$/.exec(name)?.[0] ?? 0), pairs.length);
    this.useRings(pairs);
  }
}

function checked(device: string, pair: RingPair, operation: string): RingPair {
  mustBeObject(pair, 'the rings of a queue', operation);
  const { rx, tx } = pair;
  for (const ring of [rx, tx]) {
    mustBe(ring, Ring, 'rx and tx of a queue', operation);
    if (ring.pool === undefined)
      throw invalid(operation, `the ring ${ring.name} has no pool`, {
        device,
        hint: 'create it with { pool }: the elements that it carries are packets',
      });
  }
  return { rx, tx };
}
