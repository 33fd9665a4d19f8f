/** Where the sockets of running primaries are: a folder that only this user can enter. */
import { join } from 'node:path';
import { DmaError, forPeople, invalid, isDmaError, unlessFails } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';
import { show } from '../show.js';

/** Names of Eals: one part of a file name, short enough for the path of a socket. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$/;
const SUFFIX = '.sock';

/** The permission bits of the folder. */
const ONLY_OWNER = 0o700;

/** @throws DmaError EINVAL for what can not be the name of an Eal */
export function checkEalName(name: unknown, operation: string): asserts name is string {
  if (typeof name === 'string' && NAME.test(name)) return;
  throw invalid(operation, `${show(name)} can not be the name of an Eal`, {
    hint: 'it has 1 to 31 letters, digits, dots, dashes and underscores, and begins with a letter or digit',
  });
}

/**
 * The folder: `$XDG_RUNTIME_DIR/anydma`, or `/tmp/anydma-UID` where there is no such directory. Both are checked: it
 * belongs to this user, and nobody else can enter it.
 *
 * @param create make it, if it does not exist
 * @returns `undefined` if it does not exist
 * @throws DmaError EACCES if it is another user's, or others can enter it
 */
export function folderOf(platform: Platform, create: boolean, operation: string): string | undefined {
  const user = effectiveUser();
  const folder = folderFor(platform);
  // What is there instead is told below.
  if (create) unlessFails(['ENOTDIR'], () => platform.kernel.makeDirectory(folder, ONLY_OWNER));
  const status = statusOf(platform, folder);
  if (status === undefined) return undefined;
  const hint = 'remove it, or set XDG_RUNTIME_DIR to a folder of this user only';
  const refuse = (why: string): DmaError =>
    new DmaError({ code: 'EACCES', operation, reason: `the folder of sockets, ${folder}, ${why}`, hint });
  if (status === 'link') throw refuse('is a link');
  if (status.kind !== 'directory') throw refuse('is no folder');
  if (status.user !== user) throw refuse(`belongs to user ${status.user}, not to this one (${user})`);
  if ((status.mode & 0o077) !== 0)
    throw refuse(`can be entered by others (its mode is ${(status.mode & 0o777).toString(8)})`);
  return folder;
}

function effectiveUser(): number {
  return process.geteuid?.() ?? -1;
}

/** The path of the folder. What is there is not checked. */
export function folderFor(platform: Platform): string {
  const user = effectiveUser();
  const runtime = process.env['XDG_RUNTIME_DIR'];
  if (runtime !== undefined && runtime.startsWith('/')) {
    const status = statusOf(platform, runtime);
    // A program that was started by sudo has the variable of another user.
    if (status !== 'link' && status?.kind === 'directory' && status.user === user && (status.mode & 0o022) === 0)
      return join(runtime, 'anydma');
  }
  return join('/tmp', `anydma-${user}`);
}

/** Type, owner and mode of a directory or file, which is not followed if it is a link; `undefined` if it does not exist. */
function statusOf({ files }: Platform, path: string): ReturnType<Platform['files']['status']> | 'link' | undefined {
  let fd: number;
  try {
    fd = files.open(path, 'read', { follow: false });
  } catch (error) {
    if (isDmaError(error, 'ELOOP')) return 'link';
    if (isDmaError(error, 'ENOENT') || isDmaError(error, 'ENOTDIR')) return undefined;
    throw error;
  }
  try {
    return files.status(fd);
  } finally {
    files.close(fd);
  }
}

/** The socket of the Eal of that name, in the folder. */
export function socketIn(folder: string, name: string): string {
  return join(folder, `${name}${SUFFIX}`);
}

/** A running primary. */
export interface RunningEal {
  readonly name: string;
  /** The process that it is in. */
  readonly pid: number;
  /** The program, as /proc/PID/comm has it; empty if that is hidden. */
  readonly program: string;
}

/** The running primaries of this user, by name. Sockets of dead ones do not count. */
export function runningEals(platform: Platform): RunningEal[] {
  const folder = folderOf(platform, false, 'Eal.attach');
  if (folder === undefined) return [];
  const names = platform.kernel.list(folder).filter((file) => file.endsWith(SUFFIX) && !file.startsWith('.'));
  return names.flatMap((file) => {
    const name = file.slice(0, -SUFFIX.length);
    const peer = whoListens(platform, socketIn(folder, name));
    return peer === undefined ? [] : [{ name, pid: peer.pid, program: programOf(platform, peer.pid) }];
  });
}

/** The process that listens at a socket; `undefined` if none does. */
export function whoListens({ sockets, files }: Platform, path: string): Peer | undefined {
  let fd: number | undefined;
  try {
    fd = sockets.connect(path);
    return sockets.peer(fd);
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  } finally {
    if (fd !== undefined) files.close(fd);
  }
}

/** The name of a process's program; empty if it is hidden. */
export function programOf({ kernel }: Platform, pid: number): string {
  return forPeople(() => kernel.readText(`/proc/${pid}/comm`))?.trim() ?? '';
}

/** A process in words: `process 1234 (node)`. */
export function processText(platform: Platform, pid: number, label?: string): string {
  const program = label ?? programOf(platform, pid);
  return program === '' ? `process ${pid}` : `process ${pid} (${program})`;
}
