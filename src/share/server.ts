/**
 * The socket of a primary: it admits processes of the same user, checks who they are before it answers anything, and
 * gives back what they had when they end.
 *
 * A process that connects has some seconds to say hello; there is a limit of processes, and one of those that have not
 * said hello. A process that is admitted is watched by a pidfd, so that its end is noticed at once, however it ends.
 */
import { DmaError, forPeople, isDmaError } from '../errors.js';
import type { Platform, Watch } from '../platform/ports.js';
import { clearTimeout, setTimeout } from '../timers.js';
import { thrown } from '../show.js';
import { hangUp } from '../vfio-user/hang-up.js';
import { isShortage, SocketListener } from '../vfio-user/listener.js';
import { peerOf } from '../vfio-user/server-at.js';
import { Peer, type Answer, type Question } from './peer.js';
import { folderOf, processText, socketIn, whoListens } from './places.js';
import { errorToWire, PROTOCOL } from './wire.js';

/** Processes that are attached at the same time, as long as the program does not say otherwise. */
export const MOST_SECONDARIES = 64;
/** Connections that have not said hello. */
const MOST_STRANGERS = 16;
/** Milliseconds that a process has to say hello. */
const HELLO_MS = 5000;
/** Pause before what somebody else used is given back again, in milliseconds. */
const AGAIN_MS = 250;

const OPERATION = 'Eal.attach';

/** Answers one kind of question of a secondary. An error is sent to it. */
export type Method = (session: Session, question: Question) => Answer | undefined | Promise<Answer | undefined>;

/** What a server needs. */
export interface ServerOptions {
  /** The name of the Eal. */
  readonly name: string;
  /** The version of the library, for people. */
  readonly version: string;
  /** How long a secondary has to answer what the primary waits for, in milliseconds. */
  readonly timeoutMs: number;
  /** What secondaries may ask, by name. Methods can be added later. */
  readonly methods: ReadonlyMap<string, Method>;
  /** A secondary said hello. */
  readonly joined: (session: Session) => void;
  /** A secondary has ended, or was dropped; what it had is given back after this. */
  readonly left: (session: Session, error: DmaError) => void;
}

/** One secondary, as its primary sees it. */
export class Session {
  /** Process id of the secondary. */
  readonly pid: number;
  /** The process in words. */
  readonly label: string;
  readonly peer: Peer;
  /** Resolves when its process has ended: nothing in it can reach memory any more. */
  readonly ended: Promise<void>;
  /** Has it let go of all memory before it left? Otherwise it may use what it had until its process ends. */
  clean = false;
  readonly #owned = new Set<() => void | Promise<void>>();
  /** What is given back before the rest. */
  readonly #first = new Set<() => void | Promise<void>>();
  #releasing: Promise<unknown[]> | undefined;

  /** @internal */
  constructor(pid: number, label: string, peer: Peer, ended: Promise<void>) {
    this.pid = pid;
    this.label = label;
    this.peer = peer;
    this.ended = ended;
  }

  /** Why it has ended; `undefined` while it is connected. */
  get failure(): DmaError | undefined {
    return this.peer.failure;
  }

  /**
   * Calls `giveBack` when the secondary has ended, in reverse order, one after the other, unless the result was called
   * before.
   *
   * @param isFirst before everything else: what could still use the rest
   * @returns forgets it
   */
  own(giveBack: () => void | Promise<void>, isFirst = false): () => void {
    const own = (): void | Promise<void> => giveBack();
    const set = isFirst ? this.#first : this.#owned;
    set.add(own);
    return () => void set.delete(own);
  }

  /** @internal Is there something that is still to be given back? */
  get owes(): boolean {
    return this.#owned.size + this.#first.size > 0;
  }

  /**
   * @internal Gives everything back. What another one still uses (EBUSY) stays owed.
   *
   * @returns the other errors
   */
  async release(): Promise<unknown[]> {
    this.#releasing ??= this.#release().finally(() => (this.#releasing = undefined));
    return this.#releasing;
  }

  async #release(): Promise<unknown[]> {
    const errors: unknown[] = [];
    const inUse: (() => void | Promise<void>)[] = [];
    for (const each of [...this.#owned, ...this.#first].reverse()) {
      if (!this.#owned.delete(each) && !this.#first.delete(each)) continue;
      try {
        await each();
      } catch (error) {
        if (isDmaError(error, 'EBUSY')) inUse.unshift(each);
        else errors.push(error);
      }
    }
    for (const each of inUse) this.#owned.add(each);
    return errors;
  }
}

/** A process that said hello. It is watched until it ends, also when it is not connected any more: it may have memory. */
interface Watched {
  readonly fd: number;
  readonly watch: Watch;
  readonly ended: Promise<void>;
  readonly end: () => void;
}

/** A connection, before and after its hello. */
class Visitor {
  session: Session | undefined;
  timer: NodeJS.Timeout | undefined;

  constructor(
    readonly pid: number,
    readonly peer: Peer,
  ) {}
}

/** Listens for secondaries. */
export class Server {
  readonly path: string;
  readonly #platform: Platform;
  readonly #options: ServerOptions;
  readonly #listener: SocketListener;
  readonly #visitors = new Set<Visitor>();
  /** By process id, which is not used again while it is watched. */
  readonly #processes = new Map<number, Watched>();
  /** Secondaries that have left, and still have something. */
  readonly #lost = new Set<Session>();
  #closed = false;

  /**
   * @throws DmaError EADDRINUSE if a process has this name already, with its number; EACCES if the folder of sockets is
   * not this user's alone
   */
  constructor(platform: Platform, options: ServerOptions) {
    this.#platform = platform;
    this.#options = options;
    const folder = folderOf(platform, true, 'Eal.start');
    if (folder === undefined)
      throw new DmaError({ code: 'ENOENT', operation: 'Eal.start', reason: 'the folder of sockets was removed' });
    this.path = socketIn(folder, options.name);
    try {
      // A primary lives as long as its program has work to do.
      this.#listener = new SocketListener(platform, this.path, {
        backlog: 16,
        keepAlive: false,
        admit: (fd) => this.#admit(fd),
        failed: (error) => notAccepted(error),
      });
    } catch (error) {
      throw isDmaError(error, 'EADDRINUSE') ? this.#taken(error) : error;
    }
  }

  /** The secondaries, in the order in which they attached. */
  get sessions(): Session[] {
    return [...this.#visitors].flatMap(({ session }) => session ?? []);
  }

  /**
   * Ends the connection to a secondary, and gives back what it had.
   *
   * @param error what it is told, and why
   */
  drop(session: Session, error: DmaError): void {
    session.peer.tell('ended', errorToWire(error));
    session.peer.close(error);
  }

  /** Does a process still have something? */
  get isUsed(): boolean {
    return this.#lost.size > 0 || this.sessions.length > 0;
  }

  /** Ends all connections, removes the socket, and gives back what secondaries had. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#listener.close();
    const error = new DmaError({ code: 'ECONNRESET', operation: OPERATION, reason: 'the primary stops' });
    for (const { peer, session } of [...this.#visitors])
      if (session === undefined) peer.close(error);
      else this.drop(session, error);
    // Whether they end is not known from here on.
    for (const pid of [...this.#processes.keys()]) this.#forgetProcess(pid);
    await Promise.all([...this.#lost].map((session) => this.#release(session)));
  }

  #taken(cause: DmaError): DmaError {
    const { name } = this.#options;
    const peer = whoListens(this.#platform, this.path);
    const who = peer === undefined ? 'another process' : processText(this.#platform, peer.pid);
    return new DmaError({
      code: 'EADDRINUSE',
      operation: 'Eal.start',
      reason: `${who} is the primary with the name ${JSON.stringify(name)}`,
      hint: `Eal.attach(${JSON.stringify(name)}) attaches to it; a second primary needs another name`,
      cause,
    });
  }

  /** Who is it? Other users can not even reach the socket; root can hand one to anybody. */
  #admit(fd: number): void {
    const platform = this.#platform;
    const who = peerOf(platform, fd);
    if (who?.trusted !== true || who.pid <= 0) {
      hangUp(platform, fd);
      return;
    }
    // The oldest stranger makes room for the next one, so that connections that say nothing keep nobody out.
    const strangers = [...this.#visitors].filter(({ session }) => session === undefined);
    if (strangers.length >= MOST_STRANGERS)
      strangers[0].peer.close(refusal('EBUSY', 'too many processes try to attach'));
    const { timeoutMs } = this.#options;
    const peer: Peer = new Peer(
      platform,
      fd,
      { answer: (question) => this.#answer(visitor, question), closed: (error) => this.#left(visitor, error) },
      { operation: OPERATION, timeoutMs, keepAlive: false, takesFds: false },
    );
    const visitor: Visitor = new Visitor(who.pid, peer);
    this.#visitors.add(visitor);
    visitor.timer = setTimeout(() => peer.close(refusal('ETIMEDOUT', 'no hello came in time')), HELLO_MS);
    visitor.timer.unref();
  }

  #answer(visitor: Visitor, question: Question): Answer | undefined | Promise<Answer | undefined> {
    if (visitor.session === undefined) {
      if (question.name !== 'hello') {
        const error = refusal('EPROTO', `${JSON.stringify(question.name)} came before the hello`);
        visitor.peer.close(error);
        throw error;
      }
      return this.#hello(visitor, question);
    }
    const method = this.#options.methods.get(question.name);
    if (method === undefined)
      throw new DmaError({ code: 'ENOSYS', operation: OPERATION, reason: `there is no call ${question.name}` });
    return method(visitor.session, question);
  }

  #hello(visitor: Visitor, { fields }: Question): Answer {
    const { name, version } = this.#options;
    const platform = this.#platform;
    const protocol = fields.number('protocol');
    if (protocol !== PROTOCOL) {
      const theirs = fields.has('version') ? fields.string('version', 64) : 'unknown';
      throw refusal(
        'EPROTONOSUPPORT',
        `the primary speaks version ${PROTOCOL} of the protocol (anydma ${version}), this process ${protocol} (anydma ${theirs})`,
        'use the same version of anydma in both',
      );
    }
    const [ours, theirs] = ['self', visitor.pid].map((pid) =>
      forPeople(() => platform.kernel.readLink(`/proc/${pid}/ns/pid`)),
    );
    if (ours !== theirs)
      throw refusal(
        'ENOTSUP',
        'the primary is in another pid namespace',
        'run both in the same container, or share its pid namespace (docker: --pid=container:NAME)',
      );
    if (this.sessions.length >= MOST_SECONDARIES)
      throw refusal('EBUSY', `${MOST_SECONDARIES} processes are attached already, which are the most`);
    const given = fields.has('label') ? fields.string('label', 64) : undefined;
    // It is shown to people, in terminals.
    const label = processText(platform, visitor.pid, given?.replaceAll(/[^\p{L}\p{N}\p{P}\p{S} ]/gu, '?'));
    const ended = this.#watchProcess(visitor);
    const session = new Session(visitor.pid, label, visitor.peer, ended);
    visitor.session = session;
    clearTimeout(visitor.timer);
    this.#options.joined(session);
    return { result: { protocol: PROTOCOL, version, name, pid: process.pid } };
  }

  /** Notices the end of the process, even if something else still holds its socket. @returns resolves at its end */
  #watchProcess({ pid, peer }: Visitor): Promise<void> {
    const known = this.#processes.get(pid);
    if (known !== undefined) return known.ended;
    const { sockets, readiness, files } = this.#platform;
    const fd = sockets.peerProcess(peer.fd);
    if (fd === undefined || fd === 'ended') throw refusal('ESRCH', 'the process has ended');
    try {
      const watch = readiness.watch(fd, { readable: true }, () => this.#processEnded(pid));
      watch.setRef(false);
      let end = (): void => undefined;
      const ended = new Promise<void>((resolve) => (end = resolve));
      this.#processes.set(pid, { fd, watch, ended, end });
      return ended;
    } catch (error) {
      files.close(fd);
      throw error;
    }
  }

  #processEnded(pid: number): void {
    for (const visitor of [...this.#visitors])
      if (visitor.pid === pid) visitor.peer.close(refusal('ESRCH', 'the process has ended'));
    this.#forgetProcess(pid)?.end();
  }

  #forgetProcess(pid: number): Watched | undefined {
    const watched = this.#processes.get(pid);
    if (watched === undefined) return undefined;
    this.#processes.delete(pid);
    watched.watch.close();
    this.#platform.files.close(watched.fd);
    return watched;
  }

  #left(visitor: Visitor, error: DmaError): void {
    clearTimeout(visitor.timer);
    this.#visitors.delete(visitor);
    const { session } = visitor;
    if (session === undefined) return;
    this.#options.left(session, error);
    this.#lost.add(session);
    // A process that goes on may use what it had.
    if (session.clean || this.#closed) void this.#release(session);
    else void session.ended.then(() => this.#release(session));
  }

  async #release(session: Session): Promise<void> {
    if (!this.#lost.has(session)) return;
    for (const failure of await session.release())
      process.emitWarning(`what ${session.label} had could not be given back: ${thrown(failure)}`, {
        code: 'ANYDMA_SHARE',
      });
    if (!session.owes) this.#lost.delete(session);
    else if (!this.#closed) this.#releaseLater(session);
  }

  /** Another process, or the primary's program, still uses some of it: its mapping, say. They say nothing when they let go. */
  #releaseLater(session: Session): void {
    setTimeout(() => void this.#release(session), AGAIN_MS).unref();
  }
}

/** A shortage ends, and the process that wants to attach waits for that. */
function notAccepted(error: DmaError): void {
  if (!isShortage(error)) process.emitWarning(`no process can attach: ${error.message}`, { code: 'ANYDMA_SHARE' });
}

function refusal(
  code: 'EBUSY' | 'ETIMEDOUT' | 'EPROTO' | 'EPROTONOSUPPORT' | 'ENOTSUP' | 'ESRCH',
  reason: string,
  hint?: string,
): DmaError {
  return new DmaError({ code, operation: OPERATION, reason, hint });
}
