/**
 * The files of hugetlbfs that a process keeps its hugepages in. Each is locked (flock) from before it has pages until its
 * last descriptor is closed, so that a file without a lock is one that a process left behind when it died.
 */
import { DmaError, isDmaError, undoAll, withUndo } from '../../errors.js';
import type { FilesPort, FileStatus, Platform } from '../../platform/ports.js';

/**
 * What happens to files of hugepages, by DPDK's names of `--huge-unlink`:
 * - `existing`: a file that a dead process left is removed and made anew; its own files have names while they are used.
 * - `always`: as `existing`, and a file loses its name before it is mapped, so that nothing is ever left behind.
 * - `never`: a file that is there is used with what is in it, and what is in use at the end stays for the next start. That
 *   is quicker, because the kernel clears no page, and lets the next process see what this one left in memory.
 */
export type HugeUnlink = 'existing' | 'always' | 'never';

/** A locked file of this process. */
export interface ClaimedFile {
  readonly fd: number;
  /** It was there before, with content (only with `never`). */
  readonly reused: boolean;
}

/** The path of file number `number` of those with `prefix` in `directory`; DPDK's names. */
export function hugePageFile(directory: string, prefix: string, number: number): string {
  return `${directory}/${prefix}map_${number}`;
}

/** How often, and after how many milliseconds, a file is tried again that another process may just be removing. */
const ATTEMPTS = 20;
const PAUSE = 1;

/**
 * Makes the file at `path`, or takes the one that is there as `unlink` says, and locks it exclusively: no two processes
 * ever have the same one.
 *
 * @throws DmaError EBUSY when somebody uses the file, which is waited for a few milliseconds; EPERM when what has that name is
 *   not this user's own file; EACCES, ENOENT, EROFS ... when it can not be made
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

/** One attempt of {@link claimFile}; `undefined` when the file is locked or was removed meanwhile. */
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
    // Between making and locking it, somebody who cleans up may have taken it for a dead process's.
    if (files.lock(own, 'exclusive') && files.hasName(own)) return { fd: own, reused };
  } catch (error) {
    const undo = reused ? [] : [() => files.remove(path)];
    throw withUndo(error, 'flock', undoAll([...undo, () => files.close(own)]));
  }
  files.close(own);
  return undefined;
}

/**
 * Opens a file that is there, if it can only be one that this user made: in a directory that others may write, anything can
 * have its name.
 *
 * @throws DmaError EPERM for what is no file of this user's, or may be written by others
 */
function openOwn(files: FilesPort, path: string): number {
  const refuse = (reason: string, cause?: unknown): DmaError =>
    new DmaError({
      code: 'EPERM',
      operation: 'open',
      reason: `${path} is ${reason}`,
      hint: 'it is left alone: remove it, or take another file prefix or directory',
      cause,
    });
  let fd: number;
  try {
    fd = files.open(path, 'read-write', { follow: false });
  } catch (error) {
    if (isDmaError(error, 'ELOOP')) throw refuse('a symbolic link', error);
    if (isDmaError(error, 'EACCES')) throw refuse('not for this user to write', error);
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

/** Why a file can not be one that this user made for hugepages. */
function strangeness({ kind, links, user, mode }: FileStatus): string | undefined {
  if (kind !== 'file') return `a ${kind}, not a file`;
  if (user !== process.geteuid?.()) return `a file of user ${user}`;
  if ((mode & OTHERS_WRITE) !== 0) return 'a file that others may write';
  return links > 1 ? 'a file that has other names too' : undefined;
}

/** Permission bits: the group, or all, may write. */
const OTHERS_WRITE = 0o022;

function openUnless(code: 'EEXIST' | 'ENOENT', open: () => number): number | undefined {
  try {
    return open();
  } catch (error) {
    if (isDmaError(error, code)) return undefined;
    throw error;
  }
}

/** Removes the file at `path` unless a process has it locked. Returns whether it is gone. */
function removeUnlocked(files: FilesPort, path: string): boolean {
  const fd = openUnless('ENOENT', () => openOwn(files, path));
  if (fd === undefined) return true;
  try {
    if (!files.lock(fd, 'exclusive')) return false;
    // Without a name it was removed by somebody else, and what has the name now is another file.
    if (files.hasName(fd)) files.remove(path);
    return true;
  } finally {
    files.close(fd);
  }
}

/**
 * Removes the hugepage files that processes with this prefix left in `directory` when they died: those named
 * `<prefix>map_<number>`, of this user, that nobody has locked. Nothing else is touched, and what is not this user's stays. Their
 * pages are free then. Not for programs that start with `never` and count on what is left.
 *
 * @returns the paths that were removed
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
