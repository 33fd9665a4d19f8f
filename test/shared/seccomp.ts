/** A sandbox like the default one of Docker, for tests: system calls that its seccomp profile denies fail with EPERM. */

/**
 * System calls that the library makes, or might, and that the default profile of Docker denies to a container without extra
 * capabilities (`profiles/seccomp/default.json` of Moby), by their numbers on x86-64. Those of io_uring are left out: libuv of Node 26 uses them
 * from the start, does without where they are denied from the start, and ends the process where that comes later, as here.
 */
const DENIED = {
  get_mempolicy: 239,
  mbind: 237,
  migrate_pages: 256,
  mount: 165,
  move_pages: 279,
  pidfd_getfd: 438,
  set_mempolicy: 238,
  syslog: 103,
  umount2: 166,
  userfaultfd: 323,
} as const;

/** Can {@link sandboxed} be used here? Else why not. */
export const noSandbox: string | false =
  process.platform === 'linux' && process.arch === 'x64'
    ? false
    : 'the numbers of the calls are those of Linux on x86-64';

/**
 * A program, an ES module without static imports, with a filter on all threads of its process before its first line.
 *
 * @param koffi the URL of a module that can import koffi
 */
export function sandboxed(program: string, koffi: string): string {
  return `
    const { createRequire } = await import('node:module');
    const c = createRequire(${JSON.stringify(koffi)})('koffi').load(null);
    const call = c.func('syscall', 'long', ['long', 'long', 'long', 'void *']);
    const prctl = c.func('prctl', 'int', ['int', 'ulong', 'ulong', 'ulong', 'ulong']);
    const instruction = (code, jt, jf, k) => {
      const bytes = Buffer.alloc(8);
      bytes.writeUInt16LE(code, 0);
      bytes[2] = jt;
      bytes[3] = jf;
      bytes.writeUInt32LE(k, 4);
      return bytes;
    };
    const denied = ${JSON.stringify(Object.values(DENIED))};
    // struct sock_filter of linux/filter.h: load the number of the call, compare it with each, return.
    const filter = Buffer.concat([
      instruction(0x20, 0, 0, 0),
      ...denied.map((number, i) => instruction(0x15, denied.length - i, 0, number)),
      instruction(0x06, 0, 0, 0x7fff0000), // SECCOMP_RET_ALLOW
      instruction(0x06, 0, 0, 0x00050001), // SECCOMP_RET_ERRNO, EPERM
    ]);
    // struct sock_fprog: the number of instructions, and where they are.
    const program = Buffer.alloc(16);
    program.writeUInt16LE(denied.length + 3, 0);
    program.writeBigUInt64LE(createRequire(${JSON.stringify(koffi)})('koffi').address(filter), 8);
    if (prctl(38, 1, 0, 0, 0) !== 0) throw new Error('PR_SET_NO_NEW_PRIVS');
    if (Number(call(317, 1, 1, program)) !== 0) throw new Error('seccomp');
    ${program}`;
}
