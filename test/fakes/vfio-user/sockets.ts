/** For tests: sockets that live in this process, so that both ends of a conversation run in one thread, fast and in order. */
import { DmaError } from '../../../src/errors.js';
import type { ErrorCode } from '../../../src/errors.js';
import type { Platform, ReadinessPort, ReceivedBytes, SocketsPort, Watch } from '../../../src/platform/ports.js';

/** Numbers of in-memory sockets begin here, above those of real descriptors. */
const FIRST = 1 << 24;

/** What these sockets are. */
const SOCKET = {
  kind: 'socket',
  size: 0,
  readable: true,
  writable: true,
  allocated: 0,
  pageSize: 4096,
  links: 0,
  user: 0,
  mode: 0o777,
} as const;

/** Bytes that a socket takes before its peer reads; Linux's default. */
const CAPACITY = 212992;

interface Chunk {
  bytes: Uint8Array;
  fds: number[];
}

/** One end of a connection. Several descriptors may refer to it. */
class End {
  peer: End | undefined;
  incoming: Chunk[] = [];
  queued = 0;
  references = 1;
  shut = false;
  /** Connections that wait, when this is a listening socket. */
  backlog: End[] | undefined;

  get readable(): boolean {
    if (this.backlog !== undefined) return this.backlog.length > 0;
    return this.incoming.length > 0 || this.ended;
  }

  get writable(): boolean {
    return this.ended || (this.peer?.queued ?? 0) < CAPACITY;
  }

  get ended(): boolean {
    return this.shut || this.peer === undefined || this.peer.shut || this.peer.references === 0;
  }
}

interface Watched {
  readonly end: End;
  readonly interest: { readonly readable?: boolean; readonly writable?: boolean };
  readonly onReady: () => void;
}

/** See {@link inMemoryPlatform}. */
export interface InMemoryPlatform extends Platform {
  /** Calls what is ready until nothing is, or for `rounds`. Promises do not go on meanwhile. */
  run(rounds?: number): void;
}

/**
 * `base` with sockets that live in this process. What is watched is called from the event loop, from `run`, and from
 * `readiness.wait` while that waits for something else. Time does not pass in `wait`: when nothing in this process makes
 * progress, it says at once that the time is over.
 *
 * @param options.chunk the most bytes that one send takes, to see messages in pieces
 */
export function inMemoryPlatform(base: Platform, options: { readonly chunk?: number } = {}): InMemoryPlatform {
  const ends = new Map<number, End>();
  const listeners = new Map<string, End>();
  const watches = new Set<Watched>();
  let next = FIRST;
  let scheduled = false;

  const fail = (code: ErrorCode, operation: string): never => {
    throw new DmaError({ code, operation, reason: 'in memory' });
  };
  const register = (end: End): number => {
    ends.set(next, end);
    return next++;
  };
  const endOf = (fd: number, operation: string): End => ends.get(fd) ?? fail('EBADF', operation);
  const isReady = ({ end, interest }: Watched): boolean =>
    (interest.readable === true && end.readable) || (interest.writable === true && end.writable);
  const schedule = (): void => {
    if (scheduled || ![...watches].some(isReady)) return;
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      turn();
      schedule();
    });
  };
  const turn = (except?: ReadonlySet<End>): boolean => {
    let called = false;
    for (const watched of [...watches]) {
      if (except?.has(watched.end) === true || !watches.has(watched) || !isReady(watched)) continue;
      called = true;
      watched.onReady();
    }
    return called;
  };
  const close = (fd: number): void => {
    const end = ends.get(fd);
    if (end === undefined) {
      base.files.close(fd);
      return;
    }
    ends.delete(fd);
    if (--end.references > 0) return;
    for (const [path, listener] of listeners) if (listener === end) listeners.delete(path);
    for (const waiting of end.backlog ?? []) waiting.references = 0;
    for (const { fds } of end.incoming.splice(0)) fds.forEach(close);
    schedule();
  };
  const duplicate = (fd: number): number => {
    const end = ends.get(fd);
    if (end === undefined) return base.files.duplicate(fd);
    end.references++;
    return register(end);
  };
  const connected = (): [End, End] => {
    const [a, b] = [new End(), new End()];
    a.peer = b;
    b.peer = a;
    return [a, b];
  };

  const sockets: SocketsPort = {
    connect(path) {
      const listener = listeners.get(path) ?? fail('ENOENT', 'connect');
      const [ours, theirs] = connected();
      listener.backlog?.push(theirs);
      schedule();
      return register(ours);
    },
    listen(path) {
      if (listeners.has(path)) fail('EADDRINUSE', 'listen');
      const end = new End();
      end.backlog = [];
      listeners.set(path, end);
      return register(end);
    },
    accept(fd) {
      const end = endOf(fd, 'accept').backlog?.shift();
      return end === undefined ? undefined : register(end);
    },
    pair() {
      const [a, b] = connected();
      return [register(a), register(b)];
    },
    send(fd, bytes, offset, fds) {
      const end = endOf(fd, 'sendmsg');
      if (end.ended || end.peer === undefined) return fail('EPIPE', 'sendmsg');
      const room = Math.min(CAPACITY - end.peer.queued, options.chunk ?? Infinity);
      const sent = Math.max(0, Math.min(room, bytes.length - offset));
      if (sent === 0) return 0;
      end.peer.incoming.push({ bytes: bytes.slice(offset, offset + sent), fds: fds.map(duplicate) });
      end.peer.queued += sent;
      schedule();
      return sent;
    },
    receive(fd, into, maxFds): ReceivedBytes | undefined {
      const end = endOf(fd, 'recvmsg');
      let bytes = 0;
      let fds: number[] = [];
      while (bytes < into.length && fds.length === 0) {
        const chunk = end.incoming.at(0);
        if (chunk === undefined) break;
        const taken = Math.min(chunk.bytes.length, into.length - bytes);
        into.set(chunk.bytes.subarray(0, taken), bytes);
        bytes += taken;
        end.queued -= taken;
        fds = chunk.fds;
        chunk.fds = [];
        chunk.bytes = chunk.bytes.subarray(taken);
        if (chunk.bytes.length === 0) end.incoming.shift();
      }
      schedule();
      const surplus = fds.splice(maxFds);
      surplus.forEach(close);
      if (bytes > 0) return { bytes, fds, truncated: surplus.length > 0 };
      return end.ended ? { bytes: 0, fds, truncated: false } : undefined;
    },
    peer: () => ({ pid: process.pid, user: 0, trusted: true }),
    peerProcess: () => undefined,
    shutdown(fd) {
      endOf(fd, 'shutdown').shut = true;
      schedule();
    },
  };

  const readiness: ReadinessPort = {
    watch(fd, interest, onReady): Watch {
      const end = ends.get(fd);
      if (end === undefined) return base.readiness.watch(fd, interest, onReady);
      const watched: Watched = { end, interest, onReady };
      watches.add(watched);
      schedule();
      return {
        setRef: () => undefined,
        close: () => {
          watches.delete(watched);
        },
      };
    },
    wait(fds, timeoutMs) {
      const wanted = fds.map(({ fd, readable, writable }) => ({ end: ends.get(fd), fd, readable, writable }));
      const real = fds.filter(({ fd }) => !ends.has(fd));
      const ready = (): boolean =>
        wanted.some(
          ({ end, readable, writable }) =>
            end !== undefined && ((readable && end.readable) || (writable && end.writable)),
        ) ||
        (real.length > 0 && base.readiness.wait(real, 0));
      const own = new Set(wanted.flatMap(({ end }) => (end === undefined ? [] : [end])));
      while (!ready()) if (timeoutMs === 0 || !turn(own)) return false;
      return true;
    },
  };

  return {
    ...base,
    name: 'in memory',
    sockets,
    readiness,
    files: {
      ...base.files,
      close,
      duplicate,
      foreign: (fd) => (ends.has(fd) ? 'socket' : base.files.foreign(fd)),
      closeForeign: (fd) => (ends.has(fd) ? close(fd) : base.files.closeForeign(fd)),
      status: (fd) => (ends.has(fd) ? SOCKET : base.files.status(fd)),
      sealedAgainstShrinking: (fd, add) => !ends.has(fd) && base.files.sealedAgainstShrinking(fd, add),
    },
    run(rounds = 10_000) {
      for (let n = 0; n < rounds && turn(); n++);
    },
  };
}
