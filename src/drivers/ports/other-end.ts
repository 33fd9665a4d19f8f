/** The other end of a ring port of another program, or of another thread. */
import { mustBeMs, mustBeString, mustBeWhole, mustHave, optionsOf } from '../../check.js';
import { DmaError } from '../../errors.js';
import { mustGoOn } from '../../long-work.js';
import type { Ring } from '../../memory/pool/ring.js';
import { delay, now } from '../../timers.js';
import { ringNames } from './ring-names.js';
import { RingPort } from './ring-port.js';
import type { RingPair } from './ring-port-base.js';
import { MOST_QUEUES } from './software-port.js';

/** How often it is asked for rings that are not there yet, in milliseconds. */
const ASK_MS = 50;

/** Rings by name: `secondary.rings`, or `eal.rings`. */
export interface NamedRings {
  /** The ring of that name; `undefined` if there is none. */
  find(name: string): Promise<Ring | undefined> | Ring | undefined;
}

/** How the other end is opened. */
export interface OtherEndOptions {
  /** Number of queues. Default 1. */
  readonly queues?: number;
  /** Gives up after so many milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

const OPTIONS = { queues: 'number', timeoutMs: 'number', signal: 'signal' } as const;

/**
 * Opens the other end of a ring port (`vdev:ring0`), as soon as that is started. Close it after it was stopped; packets are made with
 * `port.rings[0].rx.pool` and the table of those of the program that has the device.
 *
 * @param port the name of the device there, without its bus: `ring0`
 * @param rings of the program that has it: `(await Eal.attach(name)).rings`
 * @throws DmaError ETIMEDOUT if it is not started in time; ECANCELED once `signal` is aborted; as `rings.find`
 */
export async function openOtherEnd(port: string, rings: NamedRings, options: OtherEndOptions = {}): Promise<RingPort> {
  const operation = 'openOtherEnd';
  mustBeString(port, 'the name of a port', operation);
  mustHave(rings, ['find'], 'rings', operation, 'secondary.rings');
  const { queues = 1, timeoutMs = 10_000, signal } = optionsOf(options, OPTIONS, operation);
  mustBeWhole(queues, 1, MOST_QUEUES, 'queues', operation);
  mustBeMs(timeoutMs, 'timeoutMs', operation);
  const until = now() + timeoutMs;
  const found: Ring[] = [];
  const waitFor = async (name: string): Promise<Ring> => {
    for (;;) {
      mustGoOn(signal, operation);
      const ring = await rings.find(name);
      if (ring !== undefined) {
        found.push(ring);
        return ring;
      }
      if (now() >= until)
        throw new DmaError({
          code: 'ETIMEDOUT',
          operation,
          reason: `there is no ring ${name}`,
          hint: `the other program opens vdev:${port}${queues > 1 ? `,queues=${queues}` : ''} and starts the port`,
        });
      await delay(ASK_MS);
    }
  };
  try {
    const pairs: RingPair[] = [];
    for (let queue = 0; queue < queues; queue++) {
      const names = ringNames(port, queue);
      pairs.push({ rx: await waitFor(names.out), tx: await waitFor(names.in) });
    }
    return new RingPort(port, pairs);
  } catch (error) {
    for (const ring of found) ring[Symbol.dispose]();
    throw error;
  }
}
