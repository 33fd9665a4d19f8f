/**
 * The hugetlbfs files that hold a process's hugepages. Each file is locked (flock) before it gets pages and until its
 * last descriptor is closed. So a file without a lock was left by a process that died.
 */
import { DmaError, isDmaError, undoAll, withUndo } from '../../errors.js';
import type { FilesPort, FileStatus, Platform } from '../../platform/ports.js';

/** See `MemoryOptions.hugeUnlink`. */
export type HugeUnlink = 'existing' | 'always' | 'never';

/** A locked file of this process. */
export interface ClaimedFile {
  readonly fd: number;
  /** It existed before, with content (only with `never`). */
  readonly reused: boolean;
}

/** The path of file `number` with `prefix` in `directory`, named as DPDK names it. */
export function hugePageFile(directory: string, prefix: string, number: number): string {
  return `${directory}/${prefix}map_${number}`;
}

/** How often a file that another process may be removing is tried, and the pause between attempts in milliseconds. */
const ATTEMPTS = 20;
const PAUSE = 1;

/**
 * Creates the file at `path`, or takes the existing one as `unlink` says, and locks it exclusively: no two processes
 * ever share one.
 *
 * @throws DmaError EBUSY if another process uses the file, after some milliseconds of waiting; EPERM if the existing
 *   file is not this user's own; EACCES, ENOENT, EROFS ... if it can not be created
 */
export function claimFile(files: FilesPort, path: string, unlink: HugeUnlink): ClaimedFile {
  for (let attempt = 1; ; attempt++) {
    const claimed = tryClaim(files, path, unlink);
    if (claimed !== undefined) return claimed;
    if (attempt === ATTEMPTS) break;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE);
  }
  throw new DmaError({
    code: 'EBUSY',
    operation: 'flock',
    reason: `${path} is in use`,
    hint: 'another process has this file prefix: give each one its own',
  });
}

/** One attempt of {@link claimFile}; `undefined` if the file is locked or was removed meanwhile. */
function tryClaim(files: FilesPort, path: string, unlink: HugeUnlink): ClaimedFile | undefined {
  let reused = false;
  let fd = openUnless('EEXIST', () => files.create(path, { exclusive: true }));
  if (fd === undefined && unlink === 'never') {
    reused = true;
    fd = openUnless('ENOENT', () => openOwn(files, path));
  } else if (fd === undefined && removeUnlocked(files, path)) {
    fd = openUnless('EEXIST', () => files.create(path, { exclusive: true }));
  }
  if (fd === undefined) return undefined;
  const own = fd;
  try {
    // Between its creation and the lock, another process may have removed it as stale.
    if (files.lock(own, 'exclusive') && files.hasName(own)) return { fd: own, reused };
  } catch (error) {
    const undo = reused ? [] : [() => files.remove(path)];
    throw withUndo(error, 'flock', undoAll([...undo, () => files.close(own)]));
  }
  files.close(own);
  return undefined;
}

/**
 * Opens an existing file if only this user can have made it: in a directory that others may write, anybody can create a
 * file of that name.
 *
 * @throws DmaError EPERM if it is not a file of this user, or others may write it
 */
function openOwn(files: FilesPort, path: string): number {
  const refuse = (reason: string, cause?: unknown): DmaError =>
    new DmaError({
      code: 'EPERM',
      operation: 'open',
      reason: `${path} is ${reason}`,
      hint: 'it was not touched: remove it, or take another file prefix or directory',
      cause,
    });
  let fd: number;
  try {
    fd = files.open(path, 'read-write', { follow: false });
  } catch (error) {
    if (isDmaError(error, 'ELOOP')) throw refuse('a symbolic link', error);
    if (isDmaError(error, 'EACCES')) throw refuse('not writable for this user', error);
    throw error;
  }
  let why: string | undefined;
  try {
    why = strangeness(files.status(fd));
  } catch (error) {
    throw withUndo(error, 'open', undoAll([() => files.close(fd)]));
  }
  if (why === undefined) return fd;
  files.close(fd);
  throw refuse(why);
}

/** Why a file can not be one that this user made for hugepages; `undefined` if it can. */
function strangeness({ kind, links, user, mode }: FileStatus): string | undefined {
  if (kind !== 'file') return `a ${kind}, not a file`;
  if (user !== process.geteuid?.()) return `a file of user ${user}`;
  if ((mode & OTHERS_WRITE) !== 0) return 'a file that others may write';
  return links > 1 ? 'a file that has other names too' : undefined;
}

/** Permission bits: group or others may write. */
const OTHERS_WRITE = 0o022;

function openUnless(code: 'EEXIST' | 'ENOENT', open: () => number): number | undefined {
  try {
    return open();
  } catch (error) {
    if (isDmaError(error, code)) return undefined;
    throw error;
  }
}

/** Removes the file at `path` unless a process has it locked. @returns whether it is gone */
function removeUnlocked(files: FilesPort, path: string): boolean {
  const fd = openUnless('ENOENT', () => openOwn(files, path));
  if (fd === undefined) return true;
  try {
    if (!files.lock(fd, 'exclusive')) return false;
    // Without a name it was removed by another process, and `path` is now another file.
    if (files.hasName(fd)) files.remove(path);
    return true;
  } finally {
    files.close(fd);
  }
}

/**
 * Removes hugepage files that processes with this prefix left in `directory` when they died: files named
 * `<prefix>map_<number>`, of this user, that are not locked. Nothing else is touched. Their pages are free then. Not
 * for programs that start with `never` and rely on what is left.
 *
 * @returns the paths of the removed files
 */
export function removeStale(platform: Platform, directory: string, prefix: string): string[] {
  const { files, kernel } = platform;
  const start = `${prefix}map_`;
  const removed: string[] = [];
  for (const name of kernel.list(directory)) {
    if (!name.startsWith(start) || !/^\d+$/.test(name.slice(start.length))) continue;
    const path = `${directory}/${name}`;
    try {
      if (removeUnlocked(files, path)) removed.push(path);
    } catch (error) {
      if (!['EACCES', 'EPERM', 'EISDIR', 'ENOENT'].some((code) => isDmaError(error) && error.code === code))
        throw error;
    }
  }
  return removed;
}
