/** Processes that do not outlive this one, even when it is killed. */
import { spawn } from 'node:child_process';
import type { ChildProcessByStdio } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';

/** Starts `command`, with pipes to its standard streams. */
export function spawnTied(command: string, args: readonly string[]): ChildProcessByStdio<Writable, Readable, Readable> {
  // setpriv (util-linux) makes the kernel do it: PR_SET_PDEATHSIG.
  return spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], { stdio: ['pipe', 'pipe', 'pipe'] });
}
