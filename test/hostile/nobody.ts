/** Being another user for a moment, as root: sockets then tell that one's number (SO_PEERCRED). */
import assert from 'node:assert/strict';
import { loadLibc, type CFunction } from '../../src/platform/linux/libc.js';

/** The user `nobody`. */
export const NOBODY = 65534;

const SYS_SETRESUID = process.arch === 'x64' ? 117 : 147;

let syscall: CFunction | undefined;

function find(): CFunction {
  const libc = loadLibc();
  if (typeof libc === 'string') throw new Error(libc);
  return libc.library('libc.so.6').func('syscall', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t', 'intptr_t');
}

/**
 * Does `work`, which makes or connects a socket, as another user. Only this thread is that user meanwhile: the function of the
 * C library waits for all threads, of which some may hold a lock for ever.
 */
export function asNobody<T>(work: () => T): T {
  const call = (syscall ??= find());
  const become = (user: number): void => assert.equal(call(SYS_SETRESUID, -1, user, -1), 0);
  become(NOBODY);
  try {
    return work();
  } finally {
    become(0);
  }
}
