/**
 * Handing over: a new version of a program takes the memory, the mappings and the devices of the running one over. This
 * is the running program's side: it stops using everything, tells the new one what there is, and either lets go of it
 * when the new one has all, or goes on as if nothing had happened. take-over.ts is the other side.
 */
import type { GroupMapping } from '../bus/fan-out.js';
import type { Registry } from '../bus/registry.js';
import { DmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import type { Fields } from '../fields.js';
import type { Paused } from '../handed.js';
import { mustGoOn } from '../long-work.js';
import { External, type ExternalMemory } from '../memory/external.js';
import type { Platform } from '../platform/ports.js';
import { thrown } from '../show.js';
import { clearTimeout, setTimeout } from '../timers.js';
import type { Containers } from '../vfio/containers.js';
import { MAX_MESSAGE_FDS, type Answer } from './peer.js';
import type { Session } from './server.js';
import type { AddressWindow } from './window.js';

const OPERATION = 'handOver';

/** Characters of the description that one answer carries. */
const PART = 65_536;

/** The program that takes over. */
export interface Successor {
  /** Its process id. */
  readonly pid: number;
  /** The process in words. */
  readonly label: string;
}

/** What of an `Eal` is handed over. */
export interface HandedParts {
  readonly window: AddressWindow;
  readonly external: External;
  /** Memory of drivers. */
  readonly driverMemory: Iterable<ExternalMemory>;
  readonly containers: Containers;
  readonly registry: Pick<Registry, 'handOver'>;
  /** Is this standing mapping not handed over? */
  readonly leave: (group: GroupMapping) => boolean;
}

/**
 * Stops using all of it, and describes it. Devices go on with what they have.
 *
 * @param why of the calls that are refused meanwhile
 * @throws DmaError of what can not be stopped now; then everything goes on
 */
export async function pauseAll(parts: HandedParts, why: DmaError): Promise<Paused> {
  const { containers } = parts;
  const { range } = parts.window;
  const memory = [...parts.external];
  const ofDrivers = [...parts.driverMemory];
  const devices = await parts.registry.handOver(why, parts.leave);
  try {
    const spaces = containers.handOver();
    return {
      state: {
        window: { va: range.start, length: range.length },
        memory: memory.map((each) => External.handOver(each)),
        ofDrivers: ofDrivers.map((each) => External.handOver(each)),
        spaces: { ...spaces.state, fds: spaces.fds.length },
        devices: devices.state,
      },
      fds: [...[...memory, ...ofDrivers].flatMap(({ fd }) => fd ?? []), ...spaces.fds, ...devices.fds],
      resume: () =>
        throwFirst(
          // The new program may have got so far that the pages count for it.
          undoAll([() => containers.changeProcess(), () => devices.resume()]),
          OPERATION,
        ),
      end: (error) => {
        for (const each of [...memory, ...ofDrivers]) each.contentStays = true;
        throwFirst(undoAll([() => devices.end(error), () => containers.abandon()]), OPERATION);
      },
    };
  } catch (error) {
    throw withUndo(error, OPERATION, undoAll([() => devices.resume()]));
  }
}

/** What an {@link Offer} needs. */
export interface OfferOptions {
  readonly platform: Platform;
  /** How long the new program has from its request to its commit, in milliseconds. */
  readonly timeoutMs: number;
  /** Called when a program wants to take over, before anything is stopped. An error refuses it. */
  readonly prepare: ((successor: Successor) => void | Promise<void>) | undefined;
  /** Stops using everything: {@link pauseAll}. */
  readonly pause: () => Promise<Paused>;
  /** What calls throw once it is handed over. */
  readonly over: (successor: Successor) => DmaError;
  /** Ends the connection to the new program. */
  readonly drop: (session: Session, error: DmaError) => void;
}

/** One readiness to hand over. It ends with the first program that asks: handed over to it, or failed. */
export class Offer {
  readonly #done: Promise<Successor>;
  readonly #options: OfferOptions;
  #session: Session | undefined;
  #paused: Paused | undefined;
  #description = '';
  #timer: NodeJS.Timeout | undefined;
  #isOver = false;
  #resolve: (successor: Successor) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(options: OfferOptions) {
    this.#options = options;
    this.#done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** A program wants to take over. */
  async begin(session: Session): Promise<Answer> {
    if (this.#session !== undefined || this.#isOver)
      throw refusal(`${this.#session?.label ?? 'another process'} takes over already`);
    this.#session = session;
    const { timeoutMs, prepare, pause, drop } = this.#options;
    this.#timer = setTimeout(() => {
      const reason = `${session.label} did not take over within ${timeoutMs} ms`;
      drop(session, new DmaError({ code: 'ETIMEDOUT', operation: OPERATION, reason }));
    }, timeoutMs);
    try {
      await prepare?.({ pid: session.pid, label: session.label });
      mustBeConnected(session);
      const paused = await pause();
      this.#paused = paused;
      mustBeConnected(session);
      this.#description = JSON.stringify(paused.state);
      return { result: { length: this.#description.length, fds: paused.fds.length } };
    } catch (error) {
      this.#fail(error);
      throw error;
    }
  }

  /** A part of the description. */
  describe(session: Session, fields: Fields): Answer {
    this.#of(session);
    const at = fields.number('at');
    return { result: { text: this.#description.slice(at, at + PART) } };
  }

  /** Some of the descriptors. */
  descriptors(session: Session, fields: Fields): Answer {
    const at = fields.number('at');
    return { fds: this.#of(session).fds.slice(at, at + MAX_MESSAGE_FDS) };
  }

  /** The new program has everything: lets go of it. */
  commit(session: Session): Answer {
    const { platform, over } = this.#options;
    const paused = this.#of(session);
    // What a dead process has asked for would be nobody's.
    const process_ = platform.sockets.peerProcess(session.peer.fd);
    if (process_ === 'ended') throw refusal(`${session.label} has ended`);
    if (process_ !== undefined) platform.files.close(process_);
    const successor = { pid: session.pid, label: session.label };
    this.#end();
    // Nothing can be undone from here on.
    for (const error of undoAll([() => paused.end(over(successor))])) warn(error);
    return { sent: () => this.#resolve(successor) };
  }

  /** The process of `session` does not know whether it has committed. From here on it has not. */
  withdraw({ pid }: Session): Answer {
    if (this.#session?.pid === pid)
      this.#options.drop(this.#session, refusal('the new program has lost the connection'));
    return {};
  }

  /** A process has ended, or was dropped. */
  left(session: Session, error: DmaError): void {
    if (session === this.#session && this.#paused !== undefined) this.#fail(error);
  }

  /**
   * The program that has everything now.
   *
   * @param signal ends the offer
   * @throws why it failed; then everything goes on here
   */
  async taken(signal: AbortSignal): Promise<Successor> {
    const cancel = (): void => {
      for (const error of undoAll([() => mustGoOn(signal, OPERATION)])) this.#cancel(error);
    };
    signal.addEventListener('abort', cancel);
    cancel();
    try {
      return await this.#done;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }

  #cancel(error: unknown): void {
    const session = this.#session;
    if (session === undefined) this.#fail(error);
    else if (!this.#isOver) this.#options.drop(session, withUndo(error, OPERATION, []));
  }

  #of(session: Session): Paused {
    if (session !== this.#session || this.#paused === undefined) throw refusal('this process does not take over');
    return this.#paused;
  }

  /** Everything goes on here. */
  #fail(error: unknown): void {
    if (this.#isOver) return;
    const paused = this.#end();
    for (const failure of undoAll([() => paused?.resume()])) warn(failure);
    this.#reject(error);
  }

  #end(): Paused | undefined {
    const paused = this.#paused;
    this.#isOver = true;
    this.#paused = undefined;
    clearTimeout(this.#timer);
    return paused;
  }
}

/** @throws why it is not */
function mustBeConnected({ failure }: Session): void {
  if (failure !== undefined) throw failure;
}

function refusal(reason: string): DmaError {
  return new DmaError({ code: 'EBUSY', operation: OPERATION, reason });
}

function warn(error: unknown): void {
  process.emitWarning(`handing over: ${thrown(error)}`, { code: 'ANYDMA_SHARE' });
}
