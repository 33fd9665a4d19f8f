/** How a process attaches to a primary: finds its socket, checks whose it is, and says hello. */
import { DmaError, isDmaError } from '../errors.js';
import type { Peer as SocketPeer, Platform } from '../platform/ports.js';
import { delay, now } from '../timers.js';
import { checkEalName, folderFor, folderOf, runningEals, socketIn } from './places.js';
import { Peer, type PeerOwner, type Reply } from './peer.js';
import { PROTOCOL } from './wire.js';

/** What {@link connectToPrimary} takes. */
export interface ConnectOptions {
  /** Milliseconds that the primary has for each answer; Infinity for ever. */
  readonly timeoutMs: number;
  /** Names this process in errors of others. */
  readonly label?: string;
  /** The version of the library, for people. */
  readonly version: string;
  /** Does the connection keep the process alive? */
  readonly keepAlive: boolean;
}

/** A connection whose hello was accepted. */
export interface Connected {
  readonly peer: Peer;
  /** What the primary answered to the hello. */
  readonly hello: Reply['fields'];
  /** Process id of the primary. */
  readonly pid: number;
}

/**
 * Connects to the primary with that name.
 *
 * @throws DmaError EINVAL for an impossible name; ENOENT if no process has it, with the names that there are; EACCES if
 * it is another user's; EPROTONOSUPPORT, ENOTSUP, EBUSY of the primary; ETIMEDOUT
 */
export async function connectToPrimary(
  platform: Platform,
  name: string,
  owner: PeerOwner,
  { timeoutMs, label, version, keepAlive }: ConnectOptions,
): Promise<Connected> {
  const operation = 'Eal.attach';
  checkEalName(name, operation);
  if (platform.limitation !== undefined)
    throw new DmaError({ code: 'ENOTSUP', operation, reason: platform.limitation });
  const folder = folderOf(platform, false, operation);
  if (folder === undefined) throw absent(platform, name);
  const fd = await connected(platform, socketIn(folder, name), name, timeoutMs);
  const server = checkedPeer(platform, fd, name, operation);
  const peer = new Peer(platform, fd, owner, { operation, timeoutMs, keepAlive, takesFds: true });
  try {
    const { fields } = await peer.ask('hello', { protocol: PROTOCOL, version, name, label });
    return { peer, hello: fields, pid: server.pid };
  } catch (error) {
    const failure = isDmaError(error) ? error : new DmaError({ code: 'EIO', operation, reason: String(error) });
    peer.close(failure);
    throw failure;
  }
}

/** Whose socket it is. The descriptor is closed if this throws. @throws DmaError EACCES for another user's */
function checkedPeer({ sockets, files }: Platform, fd: number, name: string, operation: string): SocketPeer {
  try {
    const server = sockets.peer(fd);
    if (server.trusted) return server;
    const reason = `the process with the name ${JSON.stringify(name)} runs as user ${server.user}`;
    throw new DmaError({ code: 'EACCES', operation, reason, hint: 'only processes of one user share memory' });
  } catch (error) {
    files.close(fd);
    throw error;
  }
}

/** Pause before another try while the queue of the socket is full, in milliseconds. */
const RETRY_MS = 10;

async function connected(platform: Platform, path: string, name: string, timeoutMs: number): Promise<number> {
  for (const deadline = now() + timeoutMs; ; await delay(RETRY_MS)) {
    try {
      return platform.sockets.connect(path);
    } catch (error) {
      if (isDmaError(error, 'EAGAIN') && now() < deadline) continue;
      // The socket of a dead primary stays until the next one with this name.
      if (isDmaError(error, 'ENOENT') || isDmaError(error, 'ECONNREFUSED')) throw absent(platform, name, error);
      throw error;
    }
  }
}

function absent(platform: Platform, name: string, cause?: unknown): DmaError {
  const names = runningEals(platform).map((each) => each.name);
  const where = `in ${folderFor(platform)}; the primary has to have the same XDG_RUNTIME_DIR`;
  return new DmaError({
    code: 'ENOENT',
    operation: 'Eal.attach',
    reason: `no process of this user is a primary with the name ${JSON.stringify(name)}`,
    hint:
      names.length === 0
        ? `Eal.start({ name }) makes one; there is none ${where}`
        : `the names are: ${names.slice(0, 8).join(', ')}, ${where}`,
    cause,
  });
}
