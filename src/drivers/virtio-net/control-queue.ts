/** The control queue (5.1.6.5): commands, one at a time. */
import { DmaError } from '../../errors.js';
import { now } from '../../timers.js';
import type { DmaPart } from '../dma-memory.js';
import { COMMAND_OK } from './layout.js';
import { NO_CHAIN, type Ring } from './ring.js';
import type { Notifier } from './transport.js';

/** Descriptors of the queue at most: a command has two. */
export const CONTROL_DESCRIPTORS = 64;
/** Bytes of its memory: a command, and behind it the answer. */
export const COMMAND_BYTES = 64;
const ANSWER = COMMAND_BYTES - 1;
const ANSWER_MS = 1000;
/** What no device answers. */
const NO_ANSWER = 0xff;

const sleeper = new Int32Array(new SharedArrayBuffer(4));
const SLEEP_MS = 0.05;

/** A control queue. */
export class ControlQueue {
  readonly #ring: Ring;
  readonly #notifier: Notifier;
  readonly #memory: DmaPart;

  constructor(ring: Ring, notifier: Notifier, memory: DmaPart) {
    this.#ring = ring;
    this.#notifier = notifier;
    this.#memory = memory;
    ring.setInterrupts(false);
  }

  /**
   * Sends a command and waits for the answer, which devices give within a moment: the thread sleeps meanwhile.
   *
   * @throws DmaError EIO if the device refuses it; ETIMEDOUT if it does not answer, EIO for commands after that
   */
  send([kind, command]: readonly [number, number], data: ArrayLike<number>, what: string): void {
    const ring = this.#ring;
    const { bytes, iova } = this.#memory;
    const refuse = (code: 'EIO' | 'ETIMEDOUT', reason: string): DmaError =>
      new DmaError({ code, operation: 'virtio.control', reason: `the device ${reason}: ${what}` });
    if (ring.free < ring.size) throw refuse('EIO', 'still has another command');
    bytes[0] = kind;
    bytes[1] = command;
    bytes.set(data, 2);
    bytes[ANSWER] = NO_ANSWER;
    ring.begin();
    ring.add(iova, 2 + data.length, false);
    ring.add(iova + ANSWER, 1, true);
    ring.end();
    if (ring.publish()) this.#notifier.tell();
    const deadline = now() + ANSWER_MS;
    while (ring.take() === NO_CHAIN) {
      if (ring.broken !== undefined) throw refuse('EIO', ring.broken);
      if (now() > deadline) throw refuse('ETIMEDOUT', `did not answer within ${ANSWER_MS} ms`);
      Atomics.wait(sleeper, 0, 0, SLEEP_MS);
    }
    if (bytes[ANSWER] !== COMMAND_OK) throw refuse('EIO', `answered ${bytes[ANSWER]}`);
  }
}
