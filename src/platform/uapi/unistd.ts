/**
 * Numbers of system calls without a function in the C library: arch/x86/entry/syscalls/syscall_64.tbl, and
 * include/uapi/asm-generic/unistd.h for the other architectures that `libc.ts` accepts.
 */
interface SyscallNumbers {
  readonly mbind: number;
  readonly move_pages: number;
  readonly preadv2: number;
  readonly pidfd_open: number;
  readonly io_setup: number;
  readonly io_destroy: number;
  readonly io_submit: number;
  readonly io_getevents: number;
}

/** @param arch `process.arch` */
export function syscallNumbers(arch: string): SyscallNumbers {
  return arch === 'x64'
    ? {
        mbind: 237,
        move_pages: 279,
        preadv2: 327,
        pidfd_open: 434,
        io_setup: 206,
        io_destroy: 207,
        io_submit: 209,
        io_getevents: 208,
      }
    : {
        mbind: 235,
        move_pages: 239,
        preadv2: 286,
        pidfd_open: 434,
        io_setup: 0,
        io_destroy: 1,
        io_submit: 2,
        io_getevents: 4,
      };
}
