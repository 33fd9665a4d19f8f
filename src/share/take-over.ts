/**
 * Taking over: the new program's side of hand-over.ts. It gets a description and descriptors from the running program,
 * makes the same things of them without touching a device, and commits. From then on they are its own.
 */
import type { Registry } from '../bus/registry.js';
import { DmaError, isDmaError, throwFirst, undoAll, withUndo } from '../errors.js';
import { Fields, isJsonObject, nonsense } from '../fields.js';
import type { External, ExternalMemory } from '../memory/external.js';
import { retired } from '../memory/retired.js';
import type { Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import { delay, now } from '../timers.js';
import type { Va } from '../units.js';
import type { Containers } from '../vfio/containers.js';
import { connectToPrimary, type ConnectOptions } from './connect.js';
import type { Peer, PeerOwner, Question } from './peer.js';
import { libraryVersion } from './version.js';
import { errorFromWire } from './wire.js';

const OPERATION = 'Eal.takeOver';

/** How long a program that closed the connection may take to end, in milliseconds. */
const END_MS = 1000;

/** Answers nothing. */
const SILENT: PeerOwner = { answer: () => undefined, closed: () => undefined };

function optionsFor(timeoutMs: number): ConnectOptions {
  return { timeoutMs, version: libraryVersion(), keepAlive: false };
}

/** What the running program says before it ends the connection. */
interface Told {
  why: DmaError | undefined;
}

/** The connection to the running program. */
interface Connection {
  readonly platform: Platform;
  readonly name: string;
  readonly peer: Peer;
  readonly told: Told;
  /** Becomes readable when the program ends. */
  readonly pidfd: number;
  readonly pid: number;
}

/** What the running program has handed over, and waits for. */
export class Taken {
  /** Process id of the running program. */
  readonly pid: number;
  /** The description. */
  readonly state: Fields;
  /** The addresses for its memory. */
  readonly window: Range<Va>;
  /** The descriptors; whoever takes one out owns it. */
  readonly fds: number[];
  readonly #platform: Platform;
  readonly #name: string;
  readonly #peer: Peer;
  readonly #told: Told;
  /** A pidfd of the running program. */
  readonly #process: number;

  private constructor(
    { platform, name, peer, told, pidfd, pid }: Connection,
    { state, fds }: { readonly state: Fields; readonly fds: number[] },
  ) {
    this.#platform = platform;
    this.#name = name;
    this.#peer = peer;
    this.#told = told;
    this.#process = pidfd;
    this.pid = pid;
    this.state = state;
    this.fds = fds;
    const window = state.objectAt('window');
    this.window = new Range(window.number('va') as Va, window.number('length'), OPERATION);
  }

  /**
   * Asks the program with that name to stop, and for what it has.
   *
   * @throws DmaError as {@link connectToPrimary}; of the running program, which then goes on
   */
  static async from(platform: Platform, name: string, timeoutMs: number): Promise<Taken> {
    const fds: number[] = [];
    const undo = [(): void => closeAll(platform, fds)];
    const told: Told = { why: undefined };
    try {
      const owner = {
        ...SILENT,
        answer: ({ name, fields }: Question) => {
          if (name === 'ended') told.why = errorFromWire(fields.raw, OPERATION);
          return undefined;
        },
      };
      const { peer, pid } = await connectToPrimary(platform, name, owner, optionsFor(timeoutMs));
      undo.unshift(() => peer.close(gaveUp()));
      const pidfd = platform.sockets.peerProcess(peer.fd);
      if (pidfd === undefined || pidfd === 'ended')
        throw new DmaError({ code: 'ESRCH', operation: OPERATION, reason: 'the running program has ended' });
      undo.push(() => platform.files.close(pidfd));
      const begun = await peer.ask('takeOver.begin');
      const [length, count] = [begun.fields.number('length'), begun.fields.number('fds')];
      let text = '';
      while (text.length < length) {
        const part = (await peer.ask('takeOver.describe', { at: text.length })).fields.string('text', length);
        if (part === '') throw nonsense(OPERATION, 'a description that ends too early');
        text += part;
      }
      while (fds.length < count) {
        const more = await peer.ask('takeOver.descriptors', { at: fds.length });
        if (more.fds.length === 0) throw nonsense(OPERATION, 'too few descriptors');
        fds.push(...more.fds);
      }
      const state: unknown = JSON.parse(text);
      if (!isJsonObject(state)) throw nonsense(OPERATION, 'a description that is no object');
      return new Taken({ platform, name, peer, told, pidfd, pid }, { state: new Fields(state, OPERATION), fds });
    } catch (error) {
      const why = told.why ?? error;
      const failure = isDmaError(why) && why.operation === 'Eal.attach' ? why.with({ operation: OPERATION }) : why;
      throw withUndo(failure, OPERATION, undoAll(undo));
    }
  }

  /**
   * This process has everything. Resolves once it is its own: the running program has let go of it, or has ended.
   *
   * @throws DmaError why the running program goes on
   */
  async commit(): Promise<void> {
    try {
      await this.#peer.ask('takeOver.commit', {}, [], Infinity);
    } catch (error) {
      if (this.#peer.failure === undefined || !(await this.#isMine())) throw this.#told.why ?? error;
    }
    // It has let go of its name once it closes the connection.
    for (const end = now() + END_MS; this.#peer.failure === undefined && now() < end;) await delay(1);
    this.#close();
  }

  /** The running program goes on. */
  giveUp(): void {
    this.#close();
  }

  #close(): void {
    this.#peer.close(gaveUp());
    closeAll(this.#platform, [...this.fds.splice(0), this.#process]);
  }

  /** The connection broke before the answer came. Has the running program let go of everything? */
  async #isMine(): Promise<boolean> {
    // If it has ended, nobody else has what this process has.
    if (await this.#hasEnded()) return true;
    try {
      const { peer, pid } = await connectToPrimary(this.#platform, this.#name, SILENT, optionsFor(Infinity));
      try {
        // Another program has the name.
        if (pid !== this.pid) return true;
        await peer.ask('takeOver.withdraw');
        return false;
      } finally {
        peer.close(gaveUp());
      }
    } catch (error) {
      // It has given up its name. Whatever else it is, it may go on.
      return isDmaError(error, 'ENOENT');
    }
  }

  async #hasEnded(): Promise<boolean> {
    const interest = [{ fd: this.#process, readable: true, writable: false }];
    for (const end = now() + END_MS; now() < end; await delay(1))
      if (this.#platform.readiness.wait(interest, 0)) return true;
    return false;
  }
}

/** What of a new `Eal` continues. */
export interface ContinuedParts {
  readonly platform: Platform;
  readonly external: External;
  /** Memory of drivers. */
  readonly driverMemory: External;
  readonly containers: Pick<Containers, 'takeOver' | 'changeProcess' | 'abandon'>;
  readonly registry: Pick<Registry, 'takeOver'>;
}

/** Everything, made again in this process. */
export interface Continued {
  /** It is this process's own: uses it. */
  start(): void;
  /** The running program goes on with it: gives up this process's share. */
  abandon(error: DmaError): void;
}

/**
 * Makes again what was handed over, and accesses no device.
 *
 * @throws DmaError ENOTSUP for a driver or bus that this program does not have, EEXIST for addresses that are in use
 *   here, ENOMEM for memory that may not be locked, EPROTO. Nothing is left then
 */
export function continueAll(parts: ContinuedParts, { state, fds }: Taken): Continued {
  const { platform, containers } = parts;
  const memory: ExternalMemory[] = [];
  const undo = [
    (): void => {
      for (const each of memory.splice(0).reverse()) {
        each.contentStays = true;
        each.unregister();
      }
      // Another attempt needs the same addresses.
      retired.hurry();
    },
  ];
  const take = (): number => {
    const fd = fds.shift();
    if (fd === undefined) throw nonsense(OPERATION, 'too few descriptors');
    return fd;
  };
  try {
    for (const each of state.list('memory', Infinity)) memory.push(parts.external.takeOver(each, take()));
    for (const each of state.list('ofDrivers', Infinity)) memory.push(parts.driverMemory.takeOver(each, take()));
    const spaces = state.objectAt('spaces');
    undo.unshift(() => containers.abandon());
    containers.takeOver(spaces, spaces.number('fds') === 0 ? [] : [take()]);
    const devices = parts.registry.takeOver(state.objectAt('devices'), fds.splice(0), (fd) => platform.files.close(fd));
    undo.unshift(() => devices.abandon(gaveUp()));
    containers.changeProcess();
    return { start: () => devices.start(), abandon: () => throwFirst(undoAll(undo), OPERATION) };
  } catch (error) {
    throw withUndo(error, OPERATION, undoAll(undo));
  }
}

function gaveUp(): DmaError {
  return new DmaError({ code: 'ECANCELED', operation: OPERATION, reason: 'the new program has closed the connection' });
}

function closeAll({ files }: Platform, fds: readonly number[]): void {
  throwFirst(undoAll(fds.map((fd) => () => files.close(fd))), OPERATION);
}
